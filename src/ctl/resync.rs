//! `attachctl resync`.

use super::client::ApiClient;
use super::failure::Failure;
use super::output::Output;
use crate::wire::Resynced;

pub(super) async fn run(client: &ApiClient, output: &Output) -> Result<(), Failure> {
    let answer = client.post("resync", None::<&()>).await?;
    output.answer(&answer, |resynced: &Resynced| format!("{}\n", resynced.message))
}
