//! The predecessor's table of operations, as other programs find it.

use std::process::Command;
use std::time::Instant;

use lab::Volume;
use serde_json::{Value, json};

use crate::common::*;
use crate::world::World;

/// Runs a statement as another program at the store's file.
fn sql(text: &str) -> String {
    let arguments = ["-cmd", ".timeout 10000", "/var/lib/attachd/attachd.db", text];
    let output = Command::new("sqlite3").args(arguments).output().unwrap();
    assert!(output.status.success(), "{text}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// The status of a volume's only operation in the table; no event tells when it is written.
fn until_row_says(volume: &Volume, status: &str) {
    let begun = Instant::now();
    let row = || sql(&format!("SELECT status FROM volume_operations WHERE volume_id = '{}'", volume.id));
    while row() != status {
        assert!(begun.elapsed() < SOON, "{:?} instead of {status:?}", row());
    }
}

/// Health's message of rows that are refused, as soon as it is there, or gone.
fn until_refused(world: &World, is_refused: bool) -> (Value, String) {
    let begun = Instant::now();
    loop {
        let health = health(&world.api);
        let mut problems = health["problems"].as_array().unwrap().iter();
        let problem = problems.find(|problem| problem["code"] == "PROJECTION_REFUSED");
        let message = problem.map(|problem| problem["message"].as_str().unwrap().to_owned());
        if message.is_some() == is_refused {
            return (health, message.unwrap_or_default());
        }
        assert!(begun.elapsed() < SOON, "{health:#}");
        std::thread::yield_now();
    }
}

#[test]
fn an_operation_whose_row_is_refused_is_named_in_health_and_is_carried_out_like_the_others() {
    let mut world = World::new();
    let (refused, other) = (world.volume(), world.volume());
    sql(&format!(
        "CREATE TRIGGER theirs BEFORE INSERT ON volume_operations WHEN NEW.volume_id = '{}' BEGIN \
         SELECT RAISE(ABORT, 'not this one'); END",
        refused.id
    ));
    let done = world.completed("attach", &refused, json!({}));
    world.completed("attach", &other, json!({}));
    until_row_says(&other, "completed");
    // Nothing more is still to be shown of either.
    let settled = |health: &Value| health["projection"].as_array().unwrap().iter().all(|one| one["owed"] == 0);
    let begun = Instant::now();
    let (health, message) = loop {
        let (health, message) = until_refused(&world, true);
        if settled(&health) {
            break (health, message);
        }
        assert!(begun.elapsed() < SOON, "{health:#}");
    };
    assert!(message.contains(done["id"].as_str().unwrap()) && message.contains("not this one"), "{message}");
    assert!(message.contains("1 operation(s)"), "{message}");
    let target = health["projection"].as_array().unwrap().iter().find(|one| one["target"] == "sqlite-operations");
    let counts = target.map(|target| (&target["owed"], &target["refused"], &target["error"]));
    assert_eq!(counts, Some((&json!(0), &json!(1), &Value::Null)), "{health:#}");
    let metrics = world.api.get("/metrics").unwrap().text;
    assert!(metrics.contains("attachd_projection_refused{target=\"sqlite-operations\"} 1.0\n"), "{metrics}");
    until_row_says(&refused, "");
    world.is_served(&refused);

    world.attachd.terminate().unwrap();
    sql("DROP TRIGGER theirs");
    world.attachd = start(&world.lab);
    world.api = world.attachd.api();
    until_row_says(&refused, "completed");
    until_refused(&world, false);
}
