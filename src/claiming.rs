//! Writes and removes claims on a thread of their own. Waiting orders are carried out together and synced once.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::sync::{mpsc, oneshot};

use crate::claims::{Claims, Order};
use crate::identity::{Serial, VolumeId};

/// The limit of waiting orders; when it is reached, the next caller waits.
const QUEUE: usize = 1024;

/// The limit of orders that are carried out together.
const AT_ONCE: usize = 256;

type Answer = oneshot::Sender<io::Result<()>>;

/// A handle that sends orders to the thread. Cheap to clone. The thread ends after the last handle is dropped.
#[derive(Clone)]
pub struct Claiming {
    orders: mpsc::Sender<(Order, Answer)>,
}

impl Claiming {
    /// Starts the thread.
    pub fn start(claims: Claims) -> io::Result<Self> {
        let (orders, mut waiting) = mpsc::channel::<(Order, Answer)>(QUEUE);
        let work = move || {
            let mut batch = Vec::new();
            while waiting.blocking_recv_many(&mut batch, AT_ONCE) > 0 {
                let (orders, answers): (Vec<Order>, Vec<Answer>) = batch.drain(..).unzip();
                // A panic is reported as a failure, and the next orders are carried out all the same.
                let results = catch_unwind(AssertUnwindSafe(|| claims.carry_out(&orders)));
                let mut results = results.unwrap_or_default().into_iter();
                for answer in answers {
                    let _ = answer.send(results.next().unwrap_or_else(|| Err(broken_off())));
                }
            }
        };
        std::thread::Builder::new().name("claims".into()).spawn(work)?;
        Ok(Self { orders })
    }

    /// Claims a volume's serial. Durable when this succeeds.
    pub async fn add(&self, volume: VolumeId) -> io::Result<()> {
        self.order(Order::Add(volume)).await
    }

    /// Removes a claim, durably. A repetition changes nothing.
    pub async fn remove(&self, serial: Serial) -> io::Result<()> {
        self.order(Order::Remove(serial)).await
    }

    async fn order(&self, order: Order) -> io::Result<()> {
        let (answer, result) = oneshot::channel();
        self.orders.send((order, answer)).await.map_err(|_| broken_off())?;
        result.await.unwrap_or_else(|_| Err(broken_off()))
    }
}

fn broken_off() -> io::Error {
    io::Error::other("the thread that writes claims has panicked, a defect of attachd; please report it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn many_orders_are_carried_out_in_order_and_one_failure_affects_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let claims = Claims::new(dir.path().join("claims"));
        claims.restoration(Vec::new(), Vec::new()).run().unwrap();
        let claiming = Claiming::start(claims.clone()).unwrap();
        let volume = |n: u32| format!("{n:08x}-1b59-4f62-97e8-cefffdfe3804").parse::<VolumeId>().unwrap();
        let name = |n: u32| claims.folder().path().join(volume(n).serial().as_str());
        std::fs::create_dir(name(7)).unwrap();
        let added = futures_util::future::join_all((0..1000).map(|n| claiming.add(volume(n)))).await;
        let failed: Vec<usize> = (0..1000).filter(|n| added[*n].is_err()).collect();
        assert_eq!(failed, [7], "what is in the way is a folder");
        let (ended, kept) = tokio::join!(claiming.remove(volume(1).serial()), claiming.add(volume(2)));
        ended.and(kept).unwrap();
        assert!(!name(1).exists() && name(2).exists() && name(999).exists());
    }
}
