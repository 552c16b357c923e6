//! `attachctl create`, `attach`, `attach-root`, `detach`, `delete` and `cleanup`. Each begins an operation.

use super::client::ApiClient;
use super::failure::Failure;
use super::follow::{Follow, TO_THE_END, WAITING, ended};
use super::output::Output;
use crate::identity::{VmId, VolumeId};
use crate::operation::Kind;
use crate::wire::{MOST_SECONDS, NewOperation, OperationView};

/// The HTTP status of an answer to a new operation.
const CREATED: u16 = 201;

pub(super) const CREATE: &str = "\
  attachctl create \"vm 7, disk 1\" --size 42949672960 --offering ID --zone ID --wait";

pub(super) const ATTACH: &str = "\
  attachctl attach b3bb9310-1b59-4f62-97e8-cefffdfe3804 --wait
  attachctl attach b3bb9310-1b59-4f62-97e8-cefffdfe3804 --vm 5a0a2f4c-6a3e-4d5b-9f0e-2b1c3d4e5f60 --key job-17";

pub(super) const ATTACH_ROOT: &str = "\
  attachctl attach-root b3bb9310-1b59-4f62-97e8-cefffdfe3804 --vm 5a0a2f4c-6a3e-4d5b-9f0e-2b1c3d4e5f60 --wait";

pub(super) const DETACH: &str = "\
  attachctl detach b3bb9310-1b59-4f62-97e8-cefffdfe3804 --wait
  attachctl detach b3bb9310-1b59-4f62-97e8-cefffdfe3804 --force --wait=60";

pub(super) const DELETE: &str = "\
  attachctl delete b3bb9310-1b59-4f62-97e8-cefffdfe3804 --wait";

pub(super) const CLEANUP: &str = "\
  attachctl cleanup b3bb9310-1b59-4f62-97e8-cefffdfe3804 --vm 5a0a2f4c-6a3e-4d5b-9f0e-2b1c3d4e5f60 --delete-vm --wait";

/// The text at the end of each command's `--help`.
pub(super) fn help(examples: &str) -> String {
    format!("Examples:\n{examples}\n\n{WAITING}")
}

/// The options of every such command.
#[derive(clap::Args)]
struct Common {
    /// Wait until the operation has ended, at most this long. Without a number: until its own time limit ends it.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = TO_THE_END)]
    wait: Option<u32>,
    /// An idempotency key that you choose. The same command with the same key is the same operation, even after the
    /// operation has ended.
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// The time limit of the operation. When it ends, the operation reports how far it came. By default 300, for
    /// cleanup 900.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_SECONDS)))]
    deadline: Option<u32>,
}

/// A volume to create.
#[derive(clap::Args)]
pub(super) struct Create {
    /// The volume's name for people. In CloudStack the name ends with an id.
    name: String,
    /// The size. CloudStack makes whole GiB, and never less than this.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..=i64::MAX.unsigned_abs()))]
    size: u64,
    /// CloudStack's disk offering.
    #[arg(long, value_name = "ID")]
    offering: String,
    /// CloudStack's zone.
    #[arg(long, value_name = "ID")]
    zone: String,
    #[command(flatten)]
    common: Common,
}

/// A volume to attach.
#[derive(clap::Args)]
pub(super) struct Attach {
    /// The CloudStack volume's UUID.
    volume_id: VolumeId,
    /// The VM that gets it; by default this host's own.
    #[arg(long, value_name = "ID")]
    vm: Option<VmId>,
    #[command(flatten)]
    common: Common,
}

/// A volume to attach as a VM's root disk.
#[derive(clap::Args)]
pub(super) struct AttachRoot {
    /// The CloudStack volume's UUID.
    volume_id: VolumeId,
    /// The VM that gets it.
    #[arg(long, value_name = "ID")]
    vm: VmId,
    #[command(flatten)]
    common: Common,
}

/// A volume to detach or delete.
#[derive(clap::Args)]
pub(super) struct Detach {
    /// The CloudStack volume's UUID.
    volume_id: VolumeId,
    /// The VM that you believe has the volume. The request is refused if another VM has it. By default the VM on
    /// record.
    #[arg(long, value_name = "ID")]
    vm: Option<VmId>,
    /// Detach even if NBD clients are connected. What they have written is flushed before the disk goes.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    common: Common,
}

/// A test to clean up after.
#[derive(clap::Args)]
pub(super) struct Cleanup {
    /// The CloudStack volume's UUID.
    volume_id: VolumeId,
    /// The VM of the test. It has the volume.
    #[arg(long, value_name = "ID")]
    vm: VmId,
    /// Delete that VM afterwards.
    #[arg(long)]
    delete_vm: bool,
    /// Cut the VM's power instead of asking it to stop.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    common: Common,
}

/// The request for the operation, and how to wait for it.
pub(super) struct Begin<'a> {
    body: NewOperation,
    volume: Option<VolumeId>,
    common: &'a Common,
}

impl<'a> Begin<'a> {
    fn new(kind: Kind, volume: Option<VolumeId>, common: &'a Common) -> Self {
        let volume_id = volume.map(|volume| volume.to_string());
        let body = NewOperation { volume_id, deadline_seconds: common.deadline, ..NewOperation::of(kind) };
        Self { body, volume, common }
    }

    pub(super) fn create(options: &'a Create) -> Self {
        let begin = Self::new(Kind::Create, None, &options.common);
        let body = NewOperation {
            name: Some(options.name.clone()),
            size_bytes: Some(options.size),
            disk_offering_id: Some(options.offering.clone()),
            zone_id: Some(options.zone.clone()),
            ..begin.body
        };
        Self { body, ..begin }
    }

    pub(super) fn attach(options: &'a Attach) -> Self {
        let begin = Self::new(Kind::Attach, Some(options.volume_id), &options.common);
        Self { body: NewOperation { vm_id: options.vm.map(|vm| vm.to_string()), ..begin.body }, ..begin }
    }

    pub(super) fn attach_root(options: &'a AttachRoot) -> Self {
        let begin = Self::new(Kind::AttachRoot, Some(options.volume_id), &options.common);
        Self { body: NewOperation { vm_id: Some(options.vm.to_string()), ..begin.body }, ..begin }
    }

    pub(super) fn detach(kind: Kind, options: &'a Detach) -> Self {
        let begin = Self::new(kind, Some(options.volume_id), &options.common);
        let vm_id = options.vm.map(|vm| vm.to_string());
        Self { body: NewOperation { vm_id, force: options.force.then_some(true), ..begin.body }, ..begin }
    }

    pub(super) fn cleanup(options: &'a Cleanup) -> Self {
        let begin = Self::new(Kind::Cleanup, Some(options.volume_id), &options.common);
        let body = NewOperation {
            vm_id: Some(options.vm.to_string()),
            delete_vm: options.delete_vm.then_some(true),
            force: options.force.then_some(true),
            ..begin.body
        };
        Self { body, ..begin }
    }

    pub(super) async fn run(self, client: &ApiClient, output: &Output) -> Result<(), Failure> {
        let Self { body, volume, common } = self;
        let key = common.key.as_deref();
        let Some(seconds) = common.wait else {
            let answer = client.post_keyed("operations", Some(&body), key).await?;
            let operation: OperationView = answer.read()?;
            // An operation with a key may have ended long ago.
            if operation.status.is_ended() {
                return ended(output, &operation, &answer.text);
            }
            let is_new = answer.status == CREATED;
            return output.answer(&answer, |operation| accepted(operation, is_new) + &look_at(operation));
        };
        let follow = Follow::listen(client, output, volume).await?;
        let answer = client.post_keyed("operations", Some(&body), key).await?;
        if !output.is_json() {
            output.text(&accepted(&answer.read()?, answer.status == CREATED))?;
        }
        follow.until_ended(&answer, seconds).await
    }
}

fn accepted(operation: &OperationView, is_new: bool) -> String {
    let OperationView { id, kind, volume_id, .. } = operation;
    let when = if is_new { "is on record" } else { "was asked for before" };
    let volume = if volume_id.is_empty() { String::new() } else { format!(" of volume {volume_id}") };
    format!("Operation {id} ({kind}{volume}) {when}\n")
}

fn look_at(operation: &OperationView) -> String {
    format!("`attachctl operations show {} --wait` follows it\n", operation.id)
}
