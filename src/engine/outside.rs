//! Work that runs outside of the engine and always comes back as an input. A step whose task panics comes back as a
//! failure; otherwise its volume would wait for ever.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use tokio::sync::mpsc;

use super::input::Input;
use super::tools::Died;
use crate::effect;

/// Runs a step. `back` makes the input of its result, and owns what must be answered in any case.
pub(super) async fn run<T>(
    name: &'static str,
    step: impl Future<Output = T>,
    back: impl FnOnce(Result<T, Died>) -> Input,
    inputs: mpsc::Sender<Input>,
) {
    // A step that panics leaves only its own data half-done: it shares nothing except channels and locks, which stay
    // usable.
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
        // A panic whose message does not appear in the log of a test that passes.
        let died = outcome(async { std::panic::resume_unwind(Box::new("no thread")) }).await.unwrap_err();
        assert!(died.to_string().contains("test: no thread"), "{died}");
    }
}
