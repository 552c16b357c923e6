//! Runs work that may block on a thread of its own. If no thread can be started, the result is an error. The
//! runtime's own blocking threads would panic in that case.

use std::io;
use std::thread;
use std::time::Duration;

use futures_util::TryFutureExt;
use tokio::sync::{Semaphore, oneshot};

use crate::limits;

/// The limit of threads at one time.
const AT_ONCE: usize = 32;

/// How long to wait for a free thread. After this time, each thread must be stuck in its work.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

static PLACES: Semaphore = Semaphore::const_new(AT_ONCE);

/// Runs `work` on a thread and waits for the result. An error means that there was no thread or that the work
/// panicked. A caller that stops waiting does not stop the work.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let stuck = || io::Error::other(format!("{AT_ONCE} threads are busy with what does not come to an end"));
    let place = tokio::time::timeout(LONGEST_WAIT, PLACES.acquire()).await.map_err(|_| stuck())?;
    begin(move || {
        let result = work();
        drop(place);
        result
    })?
    .await
}

/// Starts `work` without the limit of threads, so the caller must limit the number. An error means that there was no
/// thread. The returned future gives the outcome.
pub(crate) fn begin<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<impl Future<Output = io::Result<T>> + Send + Unpin + 'static> {
    let (done, outcome) = oneshot::channel();
    let begun = thread::Builder::new().spawn(move || {
        let _ = done.send(work());
    });
    begun.map_err(|error| {
        let error = limits::explained(limits::Attempt::Thread, error);
        io::Error::new(error.kind(), format!("no thread can be had: {error}"))
    })?;
    let panicked = |_| io::Error::other("the work panicked, a defect of attachd; please report it");
    Ok(outcome.map_err(panicked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_and_releases_its_thread() {
        for _ in 0..2 * AT_ONCE {
            let broken = blocking(|| std::panic::resume_unwind(Box::new("on purpose"))).await;
            assert!(broken.is_err_and(|error: io::Error| error.to_string().contains("panicked")));
        }
        assert_eq!(blocking(|| 7).await.unwrap(), 7);
    }
}
