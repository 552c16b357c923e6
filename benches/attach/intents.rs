//! 20,000 intents that come and go: how fast, and what remains.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::Api;
use serde_json::json;

use crate::Plan;
use crate::report::{Goal, Samples, Section, Table};
use crate::setup::{self, STORE, absent_volume};

/// The number of clients. Each sends its next request after an answer, on one connection.
const CLIENTS: usize = 50;

/// How long the daemon is left alone before its memory and files are measured.
const REST: Duration = Duration::from_secs(10);

pub(crate) fn bench(plan: Plan) -> Result<Section> {
    let count = plan.count(20_000, 1000);
    let lab = setup::lab()?;
    let attachd = setup::start(&lab)?;
    let api = attachd.api();
    let before = setup::memory_of(&attachd, "VmRSS")?;
    let (added, adding) = by_many(&api, count, |n| {
        let body = json!({ "volume_id": absent_volume(n)?.to_string() }).to_string();
        Ok(("POST", "/api/v1/intents".to_owned(), Some(body), 201))
    })?;
    let full = setup::memory_of(&attachd, "VmRSS")?;
    let (withdrawn, withdrawing) =
        by_many(&api, count, |n| Ok(("DELETE", format!("/api/v1/intents/{}", absent_volume(n)?), None, 200)))?;
    ensure!(setup::health(&api)?["volumes"]["waiting"] == 0, "something is left");
    std::thread::sleep(REST);
    let log = megabytes(&format!("{STORE}-wal"))?;
    let resident = setup::memory_of(&attachd, "VmRSS")?;

    let rates = [&adding, &withdrawing].map(|took| per_second(count, *took));
    let mut table = Table::of_samples("one request", &["in all, per second"]);
    for (name, samples, rate) in [("added", &added, rates[0]), ("withdrawn", &withdrawn, rates[1])] {
        table.samples(name, samples, [format!("{rate:.0}")]);
    }
    let mut left = Table::new(&["", "before", "with all of them", "after they are gone"]);
    left.row(["resident, MB".to_owned(), format!("{before:.1}"), format!("{full:.1}"), format!("{resident:.1}")]);
    left.row(["the store's log, MB".to_owned(), String::new(), String::new(), format!("{log:.1}")]);
    let speed = |what: &str, rate: f64| Goal {
        wanted: format!("at least 3,000 {what} per second"),
        measured: format!("{rate:.0}"),
        met: rate >= 3000.0,
    };
    let goals = vec![
        speed("added", rates[0]),
        speed("withdrawn", rates[1]),
        Goal { wanted: "afterwards a log of at most 8 MB".into(), measured: format!("{log:.1} MB"), met: log <= 8.0 },
        Goal {
            wanted: "afterwards at most 16 MB resident".into(),
            measured: format!("{resident:.1} MB"),
            met: resident <= 16.0,
        },
    ];
    let about = format!(
        "{count} intents by {CLIENTS} clients at one time, whose disks never come: each durable, with its claim, before its \
         answer. Then all are withdrawn the same way. The clients take their part of the two processors. What is left is \
         looked at {} s later.",
        REST.as_secs()
    );
    let raw = vec![("added".to_owned(), added), ("withdrawn".to_owned(), withdrawn)];
    Ok(Section { title: "Many intents that come and go", about, tables: vec![table, left], goals, raw })
}

type Request = (&'static str, String, Option<String>, u16);

/// Sends every request, with several clients. Returns how long each took, and all together.
fn by_many(
    api: &Api,
    count: usize,
    request: impl Fn(usize) -> Result<Request> + Copy + Send + Sync,
) -> Result<(Samples, Duration)> {
    let begun = Instant::now();
    let parts = std::thread::scope(|scope| {
        let clients =
            (0..CLIENTS).map(|client| scope.spawn(move || one(api, (client..count).step_by(CLIENTS), request)));
        let clients: Vec<_> = clients.collect();
        let joined = clients.into_iter().map(|client| client.join().map_err(|_| anyhow::anyhow!("a client panicked")));
        joined.map(Result::flatten).collect::<Result<Vec<_>>>()
    })?;
    let took = begun.elapsed();
    let mut samples = Samples::default();
    for (begin, end) in parts.into_iter().flatten() {
        samples.add_between(begin, end);
    }
    Ok((samples, took))
}

fn one(
    api: &Api,
    mine: impl Iterator<Item = usize>,
    request: impl Fn(usize) -> Result<Request>,
) -> Result<Vec<(i128, i128)>> {
    let mut connection = api.keep(setup::LIMIT)?;
    mine.map(|n| {
        let (method, path, body, status) = request(n)?;
        let begin = setup::now_ns();
        connection.request(method, &path, body.as_deref())?.expect(status)?;
        Ok((begin, setup::now_ns()))
    })
    .collect()
}

fn per_second(count: usize, took: Duration) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / took.as_secs_f64()
}

fn megabytes(path: &str) -> Result<f64> {
    let bytes = std::fs::metadata(path).with_context(|| path.to_owned())?.len();
    Ok(f64::from(u32::try_from(bytes)?) / 1e6)
}
