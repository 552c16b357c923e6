//! News of volumes that nobody waits for, and the backlog while they cannot be written. The backlog holds for each
//! volume its last state and its timeline entries, up to a limit.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::Notify;

use crate::identity::VolumeId;
use crate::reason::StoryStep;
use crate::volume::{Entry, Reason, State};

/// The number of one volume's timeline entries that wait to be written: this many of the first, and this many of the
/// last.
const FIRST: usize = 32;
const LAST: usize = 96;

/// One change that nobody waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// The volume's state, the reason, and since when.
    Stand(State, Option<Reason>, Timestamp),
    /// An entry for the timeline.
    Note(Entry),
}

/// News that wait, by volume. The backlog grows with the number of volumes, not with the number of events.
#[derive(Debug, Default)]
struct Backlog {
    volumes: BTreeMap<VolumeId, Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    notes: Vec<Entry>,
    left_out: usize,
    stand: Option<News>,
}

impl Waiting {
    fn push(&mut self, news: News) {
        match news {
            News::Stand(..) => self.stand = Some(news),
            News::Note(entry) => {
                self.notes.push(entry);
                if self.notes.len() > FIRST + LAST {
                    self.notes.remove(FIRST);
                    self.left_out += 1;
                }
            }
        }
    }

    fn notes(&self) -> impl Iterator<Item = Entry> {
        let gap = self.notes.get(FIRST).filter(|_| self.left_out > 0);
        let gap = gap.map(|next| Entry {
            at: next.at,
            event: StoryStep::LeftOut.into(),
            detail: format!("{} steps: the store could not take them", self.left_out),
        });
        let (first, last) = self.notes.split_at(self.notes.len().min(FIRST));
        first.iter().cloned().chain(gap).chain(last.iter().cloned())
    }

    fn into_news(self) -> Vec<News> {
        let notes: Vec<News> = self.notes().map(News::Note).collect();
        notes.into_iter().chain(self.stand).collect()
    }
}

impl Backlog {
    /// Returns whether nothing waits.
    fn is_empty(&self) -> bool {
        self.volumes.is_empty()
    }

    /// Adds the newest news.
    fn push(&mut self, volume: VolumeId, news: impl IntoIterator<Item = News>) {
        let mut news = news.into_iter().peekable();
        if news.peek().is_some() {
            let waiting = self.volumes.entry(volume).or_default();
            news.for_each(|news| waiting.push(news));
        }
    }

    /// Puts back news that were taken out, before the news that have come since.
    fn put_back(&mut self, volume: VolumeId, news: Vec<News>) {
        let since = self.take(volume);
        self.push(volume, news);
        self.push(volume, since);
    }

    /// Returns the timeline entries of a volume that wait.
    fn notes(&self, volume: VolumeId) -> Vec<Entry> {
        self.volumes.get(&volume).map(|waiting| waiting.notes().collect()).unwrap_or_default()
    }

    /// Takes out one volume's news.
    fn take(&mut self, volume: VolumeId) -> Vec<News> {
        self.volumes.remove(&volume).map(Waiting::into_news).unwrap_or_default()
    }

    /// Takes out the news of the first volume.
    fn pop(&mut self) -> Option<(VolumeId, Vec<News>)> {
        self.volumes.pop_first().map(|(volume, waiting)| (volume, waiting.into_news()))
    }
}

/// The number of volumes whose news are written in one transaction. With more, other writers would wait for long.
const AT_ONCE: usize = 512;

/// Where news are left for the task that writes. Leaving them takes no time and never fails.
#[derive(Debug, Default)]
pub(super) struct Posted {
    inner: Mutex<Inner>,
    rang: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: Backlog,
    /// The news that are being written now.
    under_way: BTreeMap<VolumeId, Vec<News>>,
}

impl Posted {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, volume: VolumeId, news: Vec<News>) {
        self.inner().waiting.push(volume, news);
        self.rang.notify_one();
    }

    /// Resolves when news were left since the last call.
    pub(super) async fn rang(&self) {
        self.rang.notified().await;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.inner().waiting.is_empty()
    }

    /// Takes out the news for the next transaction: all about these volumes, and some of the rest.
    pub(super) fn begin(&self, first: impl IntoIterator<Item = VolumeId>) -> Vec<(VolumeId, Vec<News>)> {
        let mut inner = self.inner();
        let mut taken: BTreeMap<VolumeId, Vec<News>> = BTreeMap::new();
        for volume in first {
            if let Some(waiting) = inner.waiting.volumes.remove(&volume) {
                taken.insert(volume, waiting.into_news());
            }
        }
        while taken.len() < AT_ONCE
            && let Some((volume, news)) = inner.waiting.pop()
        {
            taken.insert(volume, news);
        }
        inner.under_way.clone_from(&taken);
        taken.into_iter().collect()
    }

    /// Marks the news that were taken out as written, except for these.
    pub(super) fn end(&self, unwritten: Vec<(VolumeId, Vec<News>)>) {
        let mut inner = self.inner();
        inner.under_way = BTreeMap::new();
        for (volume, news) in unwritten {
            inner.waiting.put_back(volume, news);
        }
    }

    /// Returns the timeline entries of a volume that are not recorded yet, or are being written.
    pub(super) fn notes(&self, volume: VolumeId) -> Unwritten {
        let inner = self.inner();
        let under_way = inner.under_way.get(&volume).into_iter().flatten();
        let under_way = under_way.filter_map(|news| match news {
            News::Note(entry) => Some(entry.clone()),
            News::Stand(..) => None,
        });
        Unwritten { under_way: under_way.collect(), waiting: inner.waiting.notes(volume) }
    }
}

/// The unwritten end of a volume's timeline at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unwritten {
    /// Entries that are being written in one transaction: either all of them are recorded, or none.
    under_way: Vec<Entry>,
    waiting: Vec<Entry>,
}

impl Unwritten {
    /// Returns whether between two moments no entry was written and no writing began.
    pub(super) fn rested_until(&self, later: &Self) -> bool {
        self.under_way == later.under_way && later.waiting.starts_with(&self.waiting)
    }

    /// Appends these entries to the recorded ones. Entries that are being written are compared by position, because
    /// an earlier life of the volume may have had equal entries, such as its disk's first event.
    pub(super) fn after(self, mut recorded: Vec<Entry>) -> Vec<Entry> {
        if !recorded.ends_with(&self.under_way) {
            recorded.extend(self.under_way);
        }
        recorded.extend(self.waiting);
        recorded
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn volume(n: u8) -> VolumeId {
        format!("{n:08x}-1b59-4f62-97e8-cefffdfe3804").parse().unwrap()
    }

    fn at(n: i64) -> Timestamp {
        Timestamp::from_microsecond(n).unwrap()
    }

    fn note(n: i64) -> News {
        News::Note(Entry { at: at(n), event: StoryStep::Lost.into(), detail: n.to_string() })
    }

    fn stand(n: i64) -> News {
        News::Stand(State::Lost, None, at(n))
    }

    #[test]
    fn a_volume_that_flaps_while_nothing_can_be_written_keeps_its_first_and_last_steps_and_says_how_many_are_missing() {
        let mut backlog = Backlog::default();
        for n in 0..10_000 {
            backlog.push(volume(1), [note(n), stand(n)]);
        }
        let told = backlog.take(volume(1));
        assert_eq!(told.len(), FIRST + 1 + LAST + 1);
        assert_eq!((&told[0], &told[FIRST - 1]), (&note(0), &note(31)));
        let News::Note(gap) = &told[FIRST] else { panic!("{told:?}") };
        assert_eq!((gap.event.name(), &*gap.detail), ("left-out", "9872 steps: the store could not take them"));
        assert_eq!(told[FIRST + LAST..], [note(9999), stand(9999)]);
        assert!(backlog.is_empty());
    }

    proptest! {
        /// News may be taken out and not written any number of times. Each volume's last state is the newest one, its
        /// timeline is in order, and what is shown meanwhile misses nothing.
        #[test]
        fn news_that_could_not_be_written_are_kept_in_order(
            pushed in proptest::collection::vec((0..3_u8, any::<bool>(), any::<bool>()), 0..60),
        ) {
            let (once, again) = (Posted::default(), Posted::default());
            let mut under_way = None;
            for (n, (id, is_note, begins)) in (0..).zip(pushed) {
                let news = if is_note { note(n) } else { stand(n) };
                once.push(volume(id), vec![news.clone()]);
                again.push(volume(id), vec![news]);
                match under_way.take() {
                    None if begins => under_way = Some(again.begin([volume(0)])),
                    None => {}
                    Some(news) => again.end(news),
                }
                for id in (0..3).map(volume) {
                    prop_assert_eq!(once.notes(id).after(Vec::new()), again.notes(id).after(Vec::new()));
                }
            }
            if let Some(news) = under_way {
                again.end(news);
            }
            prop_assert_eq!(once.begin([]), again.begin([]));
            prop_assert!(again.is_empty());
        }
    }
}
