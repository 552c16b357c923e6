//! Work that runs outside of the engine and comes back as an input, whatever becomes of it: a step whose task panics
//! comes back as a failure, or its volume would wait for it for ever.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::input::Input;
use super::{Engine, tools};
use crate::effect;

/// The task of a step has panicked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the task panicked, a defect of attachd ({0}); please report it")]
pub(crate) struct Died(String);

impl From<Died> for std::io::Error {
    fn from(died: Died) -> Self {
        Self::other(died)
    }
}

impl Engine {
    /// Begins a step outside. `back` makes the input of its result, and has what is to be answered in any case.
    pub(super) fn outside<T: Send + 'static>(
        &self,
        name: &'static str,
        step: impl Future<Output = T> + Send + 'static,
        back: impl FnOnce(Result<T, Died>) -> Input + Send + 'static,
    ) {
        self.tools.outside.start(run(name, step, back, self.back.clone()).boxed());
    }

    /// Does what may block, for a step.
    pub(super) fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> BoxFuture<'static, std::io::Result<T>> {
        tools::work(&*self.tools.outside, work)
    }

    /// Sends an input in a while.
    pub(super) fn later(&self, wait: Duration, input: Input) {
        let (back, pause) = (self.back.clone(), self.tools.outside.pause(wait));
        let step = async move {
            pause.await;
            let _ = back.send(input).await;
        };
        self.tools.outside.start(step.boxed());
    }

    /// Sends an input behind those that wait already.
    pub(super) fn afterwards(&self, input: Input) {
        let back = self.back.clone();
        self.tools.outside.start(async move { drop(back.send(input).await) }.boxed());
    }
}

async fn run<T>(
    name: &'static str,
    step: impl Future<Output = T>,
    back: impl FnOnce(Result<T, Died>) -> Input,
    inputs: mpsc::Sender<Input>,
) {
    // What a step that panics leaves half done is its own: it shares nothing with anybody but by channels and locks that
    // are used on.
    let step = AssertUnwindSafe(async {
        effect::step(name);
        step.await
    });
    let result = step.catch_unwind().await.map_err(|panic| {
        let words = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let words = words.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        tracing::error!(step = name, "a task has panicked: {words}");
        Died(format!("{name}: {words}"))
    });
    let _ = inputs.send(back(result)).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DevNum;

    async fn outcome(step: impl Future<Output = u32>) -> Result<u32, Died> {
        let (inputs, mut received) = mpsc::channel(1);
        let (told, outcome) = std::sync::mpsc::channel();
        let back = move |result| {
            told.send(result).unwrap();
            Input::Answered(DevNum { major: 1, minor: 2 })
        };
        run("test", step, back, inputs).await;
        assert!(matches!(received.recv().await, Some(Input::Answered(_))));
        outcome.recv().unwrap()
    }

    #[tokio::test]
    async fn a_step_that_panics_comes_back_as_a_failure() {
        assert_eq!(outcome(async { 7 }).await, Ok(7), "the control");
        // A panic, without its words in the log of a test that passes.
        let died = outcome(async { std::panic::resume_unwind(Box::new("no thread")) }).await.unwrap_err();
        assert!(died.to_string().contains("test: no thread"), "{died}");
    }
}
