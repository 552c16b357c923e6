//! attachd at work, on real block devices with real udev events: `make demo`.
//!
//! Everything happens in one private world (the lab of the system tests): its own network, mounts, users, `/dev` and
//! udevd. So nothing of this machine is changed. The disks are loop devices; udevd, nbdkit, nbdcopy and attachd are
//! the real programs. Each scene prints what was done (`>`), what attachd reported with milliseconds, and what was
//! checked. The last line says what passed, and the exit status is 1 if anything failed.

mod arrive;
mod both_ends;
mod callers;
mod check;
mod crash;
mod host;
mod kernel;
mod leave;
mod refuse;
mod stage;
mod story;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, ensure};

use check::Checks;
use stage::Stage;

/// One part of the demonstration.
type Scene = fn(&mut Stage) -> Result<()>;

/// The scenes, in this order: later scenes rely on what earlier ones left served.
const SCENES: &[(&str, Scene)] = &[
    ("attachd and nbdkit run as their own unprivileged users", host::users_are_unprivileged),
    ("an intent before its device", arrive::intent_before_its_device),
    ("an intent after its device", arrive::intent_after_its_device),
    ("a disk with a partition table", arrive::disk_with_a_partition_table),
    ("a disk that is too small", refuse::disk_too_small),
    ("a disk this host has mounted", refuse::disk_mounted_by_the_host),
    ("a withdrawal", leave::withdrawal),
    ("a pulled disk, and its return", leave::pulled_disk),
    ("kill -9 between match and ready", crash::killed_between_match_and_ready),
    ("a second disk with the serial of a served volume", leave::second_disk_with_the_serial),
    ("a volume that attachd has CloudStack make, attach, detach and delete", both_ends::made_attached_detached_deleted),
    ("today's callers: their lines as they stand, over TCP", callers::lines_as_they_stand),
    ("at the end", stage::the_end),
];

fn main() -> ExitCode {
    let checks = match attachd().and_then(Stage::set) {
        Ok(mut stage) => {
            for (number, (title, scene)) in SCENES.iter().enumerate() {
                println!("\n{:─<100}", format!("── {}. {title} ", number + 1));
                play(&mut stage, title, *scene);
            }
            stage.strike()
        }
        Err(error) => {
            let mut checks = Checks::default();
            checks.add("the stage is set", Err(error));
            checks
        }
    };
    println!("\ndemo: {}", checks.summary());
    if checks.all_held() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs one scene. A scene that fails counts as a failed check, and the next one runs all the same.
fn play(stage: &mut Stage, title: &str, scene: Scene) {
    let result = catch_unwind(AssertUnwindSafe(|| scene(stage)));
    let result = result.unwrap_or_else(|_| Err(anyhow!("a panic (see above)")));
    if let Err(error) = result {
        stage.checks.add(&format!("the scene \"{title}\" goes on to its end"), Err(error));
    }
}

/// Returns the daemon that was built beside this program: `target/release/examples/demo` shows
/// `target/release/attachd`.
fn attachd() -> Result<PathBuf> {
    let here = std::env::current_exe().context("finding this program")?;
    let program = here.ancestors().nth(2).context("this program is in no build folder")?.join("attachd");
    ensure!(program.exists(), "{} is missing; build it first: cargo build --release", program.display());
    Ok(program)
}
