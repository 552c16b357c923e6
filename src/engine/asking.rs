//! Finds out who is connected to a volume's disks: which device numbers to ask about, and what the answers add up to.
//!
//! attachd-helper answers from the NBD servers' open descriptors, whatever the volume's state. A client keeps what it
//! has opened even if the export is revoked, the disk is pulled, or the host begins to use the disk. Only a volume
//! that has neither a present disk nor a mapping of this boot certainly has no clients without a question.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use super::answers::Clients;
use super::tools::{Helper, NbdServer};
use super::volume::disk;
use crate::device::DevNum;
use crate::device::closing::Closing;
use crate::device::evidence::Evidence;
use crate::device::table::Table;
use crate::helper_client::{HelperClient, HelperError, Holders};
use crate::identity::Serial;

/// How long a server may take to close a disk that it has open though no client uses it. The open disk may be left
/// from attachd's own handshake, or from a client that has disconnected.
const CLOSING: Duration = Duration::from_millis(500);

/// A device number under which a volume's disk may be open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    devnum: DevNum,
    /// The present device node.
    node: Option<PathBuf>,
    /// Whether another disk has the number now. Its clients cannot be told from those of the absent disk.
    shared: bool,
}

/// Returns what to ask: each present disk of the serial, and the number of the mapping. The server keeps the
/// descriptor of a pulled disk under that number. A number of an earlier boot means nothing.
pub(super) fn questions(serial: Serial, mapping: Option<&Evidence>, boot_id: &str, table: &Table) -> Vec<Question> {
    let node = |name: &str| Path::new("/dev").join(name);
    let present = table.with_serial(serial).map(|device| Question {
        devnum: device.facts.devnum,
        node: Some(node(&device.facts.name)),
        shared: false,
    });
    let mut questions: Vec<Question> = present.collect();
    let mapping = mapping.filter(|mapping| &*mapping.boot_id == boot_id);
    if let Some(mapping) = mapping.filter(|mapping| questions.iter().all(|known| known.devnum != mapping.devnum)) {
        let there = table.of(mapping.devnum);
        questions.push(Question {
            devnum: mapping.devnum,
            node: there.map(|device| node(&device.facts.name)),
            shared: there.is_some_and(|device| disk(device) != (mapping.devnum, mapping.diskseq)),
        });
    }
    questions
}

/// The helper's answer to one question. `None`: no server has that number open.
type Held = Result<Option<Holders>, HelperError>;

/// Asks all questions.
pub(super) async fn ask(helper: &dyn Helper, server: &dyn NbdServer, questions: &[Question]) -> Clients {
    let mut answers = Vec::new();
    for question in questions {
        answers.push(shared(helper.holders(question.devnum, question.node.clone()).await, question));
    }
    match sum(answers) {
        Sum::Nobody => Clients::None,
        Sum::These(holders) => Clients::Connected(holders),
        Sum::Unknown(why) => Clients::Unknown { why, candidates: server.connected().await },
    }
}

/// What several answers add up to.
#[derive(Debug, PartialEq, Eq)]
enum Sum {
    Nobody,
    These(Holders),
    Unknown(String),
}

/// Adds up the answers. Visible clients are named even if another question has no answer. The result is nobody only
/// if each answer says so.
fn sum(answers: Vec<Held>) -> Sum {
    let (mut seen, mut unknown) = (Holders { clients: Vec::new(), exact: true }, None);
    for answer in answers {
        match answer {
            Ok(None) => {}
            Ok(Some(holders)) if holders.clients.is_empty() => {
                unknown.get_or_insert("an NBD server has its disk open, for nobody who can be seen".to_owned());
            }
            Ok(Some(holders)) => {
                seen.exact &= holders.exact;
                // Two clients on a Unix socket look alike. A client that has both disks open counts once.
                let before = seen.clients.clone();
                seen.clients.extend(holders.clients.into_iter().filter(|client| !before.contains(client)));
            }
            Err(error) => unknown = Some(error.to_string()),
        }
    }
    seen.exact &= unknown.is_none();
    match unknown {
        _ if !seen.clients.is_empty() => Sum::These(seen),
        Some(why) => Sum::Unknown(why),
        None => Sum::Nobody,
    }
}

/// Returns who has this disk open. If nobody seems to have it open and it is open, the server may be closing it.
pub(super) async fn patiently(helper: &HelperClient, devnum: DevNum, node: Option<PathBuf>) -> Held {
    // The watch starts before the question, so that a close after the answer was made is not missed.
    let closing = node.and_then(|node| Closing::watch(&node).ok());
    let limit = Instant::now() + CLOSING;
    loop {
        let last = Instant::now() >= limit;
        let answer = helper.holders(devnum).await;
        if last || !may_be_closing(&answer) {
            return answer;
        }
        // Without a watch the question is repeated when the time is over.
        let _ = match &closing {
            Some(closing) => tokio::time::timeout_at(limit, closing.closed()).await,
            None => tokio::time::timeout_at(limit, std::future::pending()).await,
        };
    }
}

/// Returns whether the open disk may be closed in a moment. Then a client of another disk is not counted as this
/// one's.
fn may_be_closing(answer: &Held) -> bool {
    matches!(answer, Ok(Some(holders)) if !holders.exact || holders.clients.is_empty())
}

fn shared(answer: Held, question: &Question) -> Held {
    Ok(answer?.map(|holders| Holders { exact: holders.exact && !question.shared, ..holders }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::evidence;
    use crate::device::facts::sample::{DEVNUM, device, ground, volume};
    use crate::device::table::Heard;

    fn mapping() -> Evidence {
        evidence::check(&ground(), &[&device()], None, jiff::Timestamp::UNIX_EPOCH).unwrap().unwrap()
    }

    /// Returns a table with the sample's disk, changed by `change`.
    fn table(change: impl FnOnce(&mut crate::device::facts::Facts)) -> Table {
        let (mut table, mut facts) = (Table::default(), device().facts);
        change(&mut facts);
        table.update(facts.devnum, crate::device::found::Found::Here(facts), 1, Heard::Look);
        table
    }

    fn asked(mapping: Option<&Evidence>, table: &Table) -> Vec<(DevNum, bool)> {
        let questions = questions(volume().serial(), mapping, &ground().boot_id, table);
        questions.into_iter().map(|question| (question.devnum, question.shared)).collect()
    }

    #[test]
    fn the_clients_of_a_present_disk_are_asked_for_once_with_and_without_a_mapping() {
        let table = table(|_| {});
        assert_eq!(asked(None, &table), [(DEVNUM, false)]);
        assert_eq!(asked(Some(&mapping()), &table), [(DEVNUM, false)]);
    }

    #[test]
    fn the_clients_of_an_absent_disk_are_asked_for_by_its_number_in_this_boot() {
        let none = Table::default();
        assert_eq!(asked(Some(&mapping()), &none), [(DEVNUM, false)]);
        let earlier = Evidence { boot_id: "an earlier one".into(), ..mapping() };
        assert_eq!(asked(Some(&earlier), &none), [], "the control");
        assert_eq!(asked(None, &none), []);
    }

    #[test]
    fn a_disk_with_the_number_of_an_absent_one_is_reported_as_sharing_it() {
        let other = table(|facts| {
            facts.diskseq += 1;
            if let Ok(identity) = &mut facts.identity {
                identity.serial = "00000000000000000000".parse().unwrap();
            }
        });
        assert_eq!(asked(Some(&mapping()), &other), [(DEVNUM, true)]);
    }

    #[test]
    fn the_clients_are_nobody_only_if_every_answer_says_so() {
        let (none, silent) = (Ok(None), Err(HelperError::Silent("x".into(), "y".into())));
        let these = |name: &str| Ok(Some(Holders { clients: vec![name.into()], exact: true }));
        let nobody_seen = Ok(Some(Holders { clients: Vec::new(), exact: false }));
        assert_eq!(sum(vec![]), Sum::Nobody);
        assert_eq!(sum(vec![none.clone(), none.clone()]), Sum::Nobody);
        assert!(matches!(sum(vec![none.clone(), silent.clone()]), Sum::Unknown(_)));
        assert!(matches!(sum(vec![nobody_seen.clone(), none.clone()]), Sum::Unknown(_)));
        let both = sum(vec![these("a"), none, these("b"), these("a")]);
        assert_eq!(both, Sum::These(Holders { clients: vec!["a".into(), "b".into()], exact: true }));
        for lacking in [silent, nobody_seen] {
            let some = sum(vec![lacking, these("a")]);
            assert_eq!(some, Sum::These(Holders { clients: vec!["a".into()], exact: false }));
        }
    }
}
