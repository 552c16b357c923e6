//! The changes, and the transaction that makes them durable.

use sqlx::Executor;
use sqlx::sqlite::SqliteConnection;

use super::WriteConnection;
use super::batch::{self, Batch, Values};
use super::news::News;
use super::operations;
use super::read::BY_WITHDRAWAL;
use super::snapshots;
use crate::clock::Steady;
use crate::device::evidence::Evidence;
use crate::effect;
use crate::identity::VolumeId;
use crate::operation::{Operation, Placeholder};
use crate::volume::{By, Intent, IntentOrigin, Snapshot, SnapshotNews, State};

/// One change. Writing it twice has the same result as once, except for [`News::Note`], which adds to the history.
#[derive(Debug, Clone)]
pub enum Change {
    /// An intent was accepted.
    Intend(Intent),
    /// An intent was withdrawn. Its row and its mapping are deleted; its timeline stays.
    Withdraw(VolumeId),
    /// Sets what seals a volume, if anything does.
    Seal(VolumeId, Option<By>),
    /// A device is proven to be the volume's.
    Map(VolumeId, Evidence),
    /// News that nobody waits for.
    News(VolumeId, News),
    /// The present state of an operation.
    Operation(Box<Operation>),
    /// Another VM has the volume now.
    Place(Placeholder),
    /// No other VM has the volume any more.
    Displace(VolumeId),
    /// A caller keeps track of a volume's snapshot.
    Track(Box<Snapshot>),
    /// What it knows of the snapshot has changed.
    Retrack(VolumeId, SnapshotNews),
    /// It keeps track of the snapshots of this context no more.
    Untrack(String),
}

impl Change {
    /// Returns the volume whose record changes.
    pub(super) fn volume(&self) -> Option<VolumeId> {
        match self {
            Self::Intend(intent) => Some(intent.volume),
            Self::Withdraw(volume) | Self::Seal(volume, _) | Self::Map(volume, _) | Self::News(volume, _) => {
                Some(*volume)
            }
            // Posted news are never about these.
            Self::Operation(_)
            | Self::Place(_)
            | Self::Displace(_)
            | Self::Track(_)
            | Self::Retrack(..)
            | Self::Untrack(_) => None,
        }
    }

    fn effect(&self) -> &'static str {
        match self {
            Self::Intend(_) => "commit.intent",
            Self::Withdraw(_) => "commit.withdrawal",
            Self::Seal(_, Some(_)) => "commit.seal",
            Self::Seal(_, None) => "commit.unseal",
            Self::Map(..) => "commit.mapping",
            Self::News(..) => "commit.state",
            Self::Operation(operation) => operations::effect(operation),
            Self::Place(_) => "commit.placeholder",
            Self::Displace(_) => "commit.no-placeholder",
            Self::Track(_) | Self::Retrack(..) | Self::Untrack(_) => "commit.snapshot",
        }
    }
}

const MAP: &str = "INSERT INTO mappings \
    (volume_id, serial, scheme, device_path, devnum, diskseq, size_bytes, read_only, boot_id, proven_at) \
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (volume_id) DO UPDATE SET \
    serial = excluded.serial, scheme = excluded.scheme, device_path = excluded.device_path, \
    devnum = excluded.devnum, diskseq = excluded.diskseq, size_bytes = excluded.size_bytes, \
    read_only = excluded.read_only, boot_id = excluded.boot_id, proven_at = excluded.proven_at";

/// Prepares the one statement that a disk waits for.
pub(super) async fn prepare(connection: &mut SqliteConnection) -> sqlx::Result<()> {
    connection.prepare(batch::alone(MAP)).await.map(drop)
}

/// Writes all changes durably, or none of them.
pub(super) async fn commit(connection: &mut WriteConnection, changes: &[&Change], boot_id: &str) -> sqlx::Result<()> {
    let mut names: Vec<&'static str> = changes.iter().map(|change| change.effect()).collect();
    names.sort_unstable();
    names.dedup();
    effect::at_all(&names, async {
        let mut batch = Batch::default();
        for change in changes {
            apply(&mut batch, change, boot_id);
        }
        if let [Change::Map(..)] = changes {
            // This is the one write between an event and its export. A single statement is its own transaction.
            batch.run(connection).await
        } else {
            connection.begin().await?;
            let applied = batch.run(connection).await;
            connection.end(applied).await
        }
    })
    .await
}

fn apply(batch: &mut Batch, change: &Change, boot_id: &str) {
    match change {
        Change::Intend(intent) => batch.add(
            "INSERT INTO intents (volume_id, serial, vm_id, size_bytes, deadline_seconds, waits_boot, waits_until, waits_left, \
             created_at, since, uid, operation_id, state) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
             ON CONFLICT (volume_id) DO UPDATE SET serial = excluded.serial, vm_id = excluded.vm_id, \
             size_bytes = excluded.size_bytes, deadline_seconds = excluded.deadline_seconds, \
             waits_boot = excluded.waits_boot, waits_until = excluded.waits_until, waits_left = excluded.waits_left, \
             created_at = excluded.created_at, since = excluded.since, uid = excluded.uid, \
             operation_id = excluded.operation_id, state = excluded.state",
        )
        .bind(intent.volume.to_string())
        .bind(intent.serial().to_string())
        .bind(&intent.vm_id)
        .bind(intent.size_bytes.map(u64::cast_signed))
        .bind(intent.deadline_seconds)
        .bind(intent.deadline.map(|_| boot_id.to_owned()))
        .bind(intent.deadline.map(Steady::as_micros))
        .bind(intent.deadline_seconds.map(|seconds| i64::from(seconds) * 1_000_000))
        .bind(intent.created_at.as_microsecond())
        .bind(intent.created_at.as_microsecond())
        .bind(intent.uid)
        .bind(match intent.origin {
            IntentOrigin::Announced => None,
            IntentOrigin::Operation(operation) => Some(operation.to_string()),
        })
        .bind(State::waiting_for(intent.origin).as_str()),
        Change::Withdraw(volume) => batch.add("DELETE FROM intents WHERE volume_id = ?").bind(volume.to_string()),
        Change::Seal(volume, by) => batch
            .add("UPDATE intents SET sealed_by = ? WHERE volume_id = ?")
            .bind(by.map(|by| match by {
                By::Withdrawal => BY_WITHDRAWAL.to_owned(),
                By::Operation(operation) => operation.to_string(),
            }))
            .bind(volume.to_string()),
        Change::Map(volume, evidence) => batch.add(MAP)
        .bind(volume.to_string())
        .bind(evidence.serial.to_string())
        .bind(&evidence.scheme)
        .bind(&evidence.link)
        .bind(evidence.devnum.to_string())
        .bind(evidence.diskseq.cast_signed())
        .bind(evidence.size_bytes.cast_signed())
        .bind(evidence.read_only)
        .bind(&evidence.boot_id)
        .bind(evidence.at.as_microsecond()),
        Change::News(volume, news) => tell(batch, *volume, news),
        Change::Operation(operation) => operations::put(batch, operation, boot_id),
        Change::Place(placeholder) => operations::place(batch, placeholder),
        Change::Displace(volume) => operations::displace(batch, *volume),
        Change::Track(snapshot) => snapshots::track(batch, snapshot),
        Change::Retrack(volume, news) => snapshots::update(batch, *volume, news),
        Change::Untrack(context) => snapshots::forget(batch, context),
    };
}

fn tell<'b>(batch: &'b mut Batch, volume: VolumeId, news: &News) -> Values<'b> {
    match news {
        News::Stand(state, reason, since) => batch.add(
            "UPDATE intents SET state = ?, reason_code = ?, reason_message = ?, reason_hint = ?, since = ? WHERE volume_id = ?",
        )
        .bind(state.as_str())
        .bind(reason.as_ref().map(|reason| reason.code.name()))
        .bind(reason.as_ref().map(|reason| reason.message.clone()))
        .bind(reason.as_ref().map(|reason| reason.hint.clone()))
        .bind(since.as_microsecond())
        .bind(volume.to_string()),
        News::Note(entry) => {
            batch.add("INSERT INTO timeline (volume_id, at, event, detail) VALUES (?, ?, ?, ?)")
                .bind(volume.to_string())
                .bind(entry.at.as_microsecond())
                .bind(entry.event.name().to_owned())
                .bind(&entry.detail)
        }
    }
}
