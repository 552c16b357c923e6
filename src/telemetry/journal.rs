//! Sends journal entries with fields to journald, by journald's own protocol
//! (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>). A thread of its own sends them, because a hanging journald would
//! block the caller. `tracing-journald` sends in the caller's thread.

use std::fmt::{Debug, Write as _};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use rustix::fs::Stat;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use crate::limits;
use crate::reason::{Severity, StoryStep};

const SOCKET: &str = "/run/systemd/journal/socket";

/// The limit of entries that wait for journald; further entries are counted and dropped.
const QUEUE: usize = 4096;

/// The size limit of a value in bytes. A longer value is cut, so that an entry always fits into a datagram.
const LONGEST_VALUE: usize = 32 * 1024;

/// The time limit for the last entries when the program ends.
const GRACE: Duration = Duration::from_secs(1);

/// Returns whether standard error is the journal, by systemd's `JOURNAL_STREAM` (`systemd.exec(5)`). A service's
/// child with an output of its own inherits the variable but not the stream, so the stream is compared.
pub(super) fn is_standard_error() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    rustix::fs::fstat(std::io::stderr()).is_ok_and(|stat| names(&stream, &stat))
}

fn names(stream: &str, stat: &Stat) -> bool {
    stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}

/// Takes tracing events and queues them as entries.
pub(super) struct Journal {
    queue: SyncSender<QueuedEntry>,
    lost: Arc<AtomicU64>,
}

enum QueuedEntry {
    Write(Vec<u8>),
    /// Confirm that everything before this is sent.
    Confirm(SyncSender<()>),
}

/// A guard that waits for the last entries when it is dropped, up to a time limit.
pub struct FlushGuard(SyncSender<QueuedEntry>);

impl Drop for FlushGuard {
    fn drop(&mut self) {
        let (done, all_written) = sync_channel(1);
        // If the queue is full, journald hangs.
        if self.0.try_send(QueuedEntry::Confirm(done)).is_ok() {
            let _ = all_written.recv_timeout(GRACE);
        }
    }
}

impl Journal {
    /// Starts the thread.
    pub(super) fn start() -> std::io::Result<(Self, FlushGuard)> {
        let socket = UnixDatagram::unbound()?;
        let (queue, orders) = sync_channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let missed = Arc::clone(&lost);
        std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || write(&socket, &orders, &missed))
            .map_err(|error| limits::explained(limits::Attempt::Thread, error))?;
        Ok((Self { queue: queue.clone(), lost }, FlushGuard(queue)))
    }
}

fn write(socket: &UnixDatagram, orders: &Receiver<QueuedEntry>, lost: &AtomicU64) {
    // Each send uses the path, because journald may make its socket again. A failure cannot be reported anywhere.
    let send = |entry: &[u8]| drop(socket.send_to(entry, SOCKET));
    for order in orders {
        match order {
            QueuedEntry::Write(entry) => send(&entry),
            QueuedEntry::Confirm(done) => drop(done.send(())),
        }
        match lost.swap(0, Ordering::Relaxed) {
            0 => {}
            count => {
                let told = format!("{count} journal entries of attachd were lost: journald did not take them");
                send(
                    &JournalEntry { message: told, step: Some(StoryStep::EntriesLost), ..JournalEntry::default() }
                        .render(4),
                );
            }
        }
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut entry = JournalEntry::default();
        event.record(&mut entry);
        let priority = priority(*event.metadata().level(), entry.step);
        let entry = entry.render(priority);
        if let Err(TrySendError::Full(_)) = self.queue.try_send(QueuedEntry::Write(entry)) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Returns journald's priority for an event of this level, which may be a step in a volume's story.
fn priority(level: Level, step: Option<StoryStep>) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO if step.is_some_and(|step| step.severity(true) == Severity::Notice) => 5,
        Level::INFO => 6,
        _ => 7,
    }
}

/// An event that becomes an entry. A field in capitals becomes only a field of the entry; other fields are also added
/// to the message, as on standard error.
#[derive(Default)]
struct JournalEntry {
    message: String,
    volume: Option<String>,
    step: Option<StoryStep>,
    fields: Vec<(String, String)>,
    told: String,
}

impl JournalEntry {
    fn set(&mut self, name: &str, value: String) {
        match name {
            "message" => return self.message = value,
            "VOLUME_ID" => self.volume = Some(value.clone()),
            "EVENT" => self.step = StoryStep::from_name(&value),
            _ if name.bytes().any(|byte| byte.is_ascii_lowercase()) => {
                let _ = write!(self.told, " {name}={value}");
            }
            _ => {}
        }
        self.fields.push((name.to_ascii_uppercase(), value));
    }

    fn render(self, priority: u8) -> Vec<u8> {
        let whose = self.volume.map(|volume| format!("volume {volume}: ")).unwrap_or_default();
        let message = format!("{whose}{}{}", self.message.trim_end(), self.told);
        let mut bytes = Vec::with_capacity(512);
        push(&mut bytes, "PRIORITY", &priority.to_string());
        push(&mut bytes, "SYSLOG_IDENTIFIER", "attachd");
        push(&mut bytes, "MESSAGE", &message);
        if let Some(step) = self.step {
            push(&mut bytes, "MESSAGE_ID", step.message_id());
        }
        for (name, value) in &self.fields {
            push(&mut bytes, name, value);
        }
        bytes
    }
}

fn push(bytes: &mut Vec<u8>, name: &str, value: &str) {
    let value = &value[..value.floor_char_boundary(LONGEST_VALUE)];
    bytes.extend(name.as_bytes());
    if value.contains('\n') {
        // A value with line feeds is sent with its length.
        bytes.push(b'\n');
        bytes.extend((value.len() as u64).to_le_bytes());
    } else {
        bytes.push(b'=');
    }
    bytes.extend(value.as_bytes());
    bytes.push(b'\n');
}

impl Visit for JournalEntry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.set(field.name(), format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt;

    /// Returns the bytes of one event.
    fn rendered(say: impl FnOnce()) -> String {
        let (queue, orders) = sync_channel(1);
        let journal = Journal { queue, lost: Arc::default() };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(journal), say);
        let QueuedEntry::Write(entry) = orders.recv().unwrap() else { panic!("nothing was written") };
        String::from_utf8(entry).unwrap()
    }

    #[test]
    fn a_transition_is_one_entry_with_its_fields_its_id_and_the_volume_in_its_message() {
        let id = StoryStep::Ready.message_id();
        let entry = rendered(|| {
            tracing::info!(EVENT = "ready", VOLUME_ID = %"v", DISKSEQ = Some(7), DEVNAME = None::<&str>, "{} {}", "ready", "");
        });
        let expected = format!(
            "PRIORITY=6\nSYSLOG_IDENTIFIER=attachd\nMESSAGE=volume v: ready\nMESSAGE_ID={id}\nEVENT=ready\nVOLUME_ID=v\nDISKSEQ=7\n"
        );
        assert_eq!(entry, expected);
    }

    #[test]
    fn an_entrys_priority_follows_from_its_step() {
        let of = |entry: String| entry.lines().next().unwrap_or_default().to_owned();
        assert_eq!(of(rendered(|| tracing::info!(EVENT = "expired", "x"))), "PRIORITY=5");
        assert_eq!(of(rendered(|| tracing::warn!(EVENT = "lost", "x"))), "PRIORITY=4");
        assert_eq!(of(rendered(|| tracing::info!(EVENT = "revoked", "x"))), "PRIORITY=6", "somebody asked for it");
        assert_eq!(of(rendered(|| tracing::info!("x"))), "PRIORITY=6");
    }

    #[test]
    fn plain_fields_are_added_to_the_message() {
        let entry = rendered(|| tracing::warn!(reason = "start", disks = 3, "read all disks"));
        assert!(entry.contains("PRIORITY=4\n") && entry.contains("MESSAGE=read all disks reason=start disks=3\n"));
        assert!(entry.contains("\nREASON=start\nDISKS=3\n"), "{entry}");
    }

    #[test]
    fn line_feeds_in_a_value_make_no_fields() {
        let entry = rendered(|| tracing::error!("one\nMESSAGE_ID=forged"));
        assert!(entry.contains("MESSAGE\n\u{15}\0\0\0\0\0\0\0one\nMESSAGE_ID=forged\n"), "{entry:?}");
    }

    #[test]
    fn a_value_too_long_for_a_datagram_is_cut() {
        let entry = rendered(|| tracing::error!("{}", "ä".repeat(LONGEST_VALUE)));
        assert!(entry.len() < 2 * LONGEST_VALUE);
    }

    #[test]
    fn a_full_queue_blocks_no_caller_and_counts_lost_entries() {
        let (queue, _orders) = sync_channel(1);
        let lost = Arc::new(AtomicU64::new(0));
        let journal = Journal { queue, lost: Arc::clone(&lost) };
        let all = tracing_subscriber::registry().with(journal);
        tracing::subscriber::with_default(all, || (0..5).for_each(|n| tracing::info!(n, "x")));
        assert_eq!(lost.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn only_the_stream_that_systemd_names_is_the_journal() {
        let stat = rustix::fs::fstat(std::fs::File::open("/dev/null").unwrap()).unwrap();
        assert!(names(&format!("{}:{}", stat.st_dev, stat.st_ino), &stat));
        assert!(!names(&format!("{}:{}", stat.st_dev, stat.st_ino + 1), &stat));
        assert!(!names("", &stat) && !names("x", &stat));
    }
}
