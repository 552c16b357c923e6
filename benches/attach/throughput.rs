//! The throughput of each NBD server.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use attachd::export::links::Links;
use attachd::export::nbd_server::sections::Sections;
use lab::nbd_server::FOLDER;
use lab::{Lab, NbdClient};
use serde_json::Value;

use crate::Plan;
use crate::report::{Samples, Section, Table, ms};
use crate::servers::{ADDRESS, SERVER_KINDS, Server, ServerKind};
use crate::setup;

const MIB: u64 = 1 << 20;

/// The measurements, in this order.
#[derive(Debug, Clone, Copy)]
enum Work {
    /// From the connection to the answer of `NBD_OPT_GO`.
    Connect,
    /// `nbdcopy`, from its start to its end.
    Read,
    Write,
    /// fio over the whole disk, without the connection.
    FioRead,
    FioWrite,
    /// fio with requests of 4 KiB for some time.
    RandomRead,
    RandomWrite,
}

const WORKS: [Work; 7] =
    [Work::Connect, Work::Read, Work::Write, Work::FioRead, Work::FioWrite, Work::RandomRead, Work::RandomWrite];

impl Work {
    fn name(self) -> &'static str {
        match self {
            Self::Connect => "connecting",
            Self::Read => "nbdcopy to null:",
            Self::Write => "nbdcopy --flush from a file",
            Self::FioRead => "fio read, 256 KiB, depth 16",
            Self::FioWrite => "fio write, 256 KiB, depth 16, fsync at the end",
            Self::RandomRead => "fio randread, 4 KiB, depth 32",
            Self::RandomWrite => "fio randwrite, 4 KiB, depth 32",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Connect => "ms",
            Self::Read | Self::Write | Self::FioRead | Self::FioWrite => "MiB/s",
            Self::RandomRead | Self::RandomWrite => "requests/s",
        }
    }

    /// Returns a measured time in [`Work::unit`]s: of a connection, of the whole disk or of one request.
    #[expect(clippy::cast_precision_loss, reason = "a disk of a bench is small")]
    fn rate(self, time_ms: f64, size: u64) -> f64 {
        match self {
            Self::Connect => time_ms,
            Self::Read | Self::Write | Self::FioRead | Self::FioWrite => (size / MIB) as f64 / time_ms * 1e3,
            Self::RandomRead | Self::RandomWrite => 1e3 / time_ms,
        }
    }

    fn shown(self, time_ms: f64, size: u64) -> String {
        match self {
            Self::Connect => ms(time_ms),
            _ => format!("{:.0}", self.rate(time_ms, size)),
        }
    }
}

pub(crate) fn bench(plan: Plan) -> Result<Section> {
    let rounds = plan.count(SERVER_KINDS.len(), 1);
    let size = if plan.quick { 32 * MIB } else { 256 * MIB };
    let mut stage = Stage::new(size)?;
    let mut servers = Vec::new();
    for kind in SERVER_KINDS {
        servers.push(kind.install(&stage.lab)?);
    }
    let mut times: [[Samples; WORKS.len()]; SERVER_KINDS.len()] = Default::default();
    for round in 0..rounds {
        // Each server is first equally often.
        for turn in 0..SERVER_KINDS.len() {
            let who = (round + turn) % SERVER_KINDS.len();
            stage.turn(&mut servers[who], &mut times[who]).with_context(|| SERVER_KINDS[who].name())?;
        }
        println!("round {} of {rounds}", round + 1);
    }

    let head = |title| [title, "unit"].into_iter().chain(SERVER_KINDS.map(ServerKind::name)).collect::<Vec<_>>();
    let mut table = Table::new(&head("median (÷ nbdkit)"));
    let mut spread = Table::new(&head("least to most"));
    for (n, work) in WORKS.into_iter().enumerate() {
        let base = work.rate(times[0][n].p50(), size);
        let cells = times.iter().map(|samples| {
            let time = samples[n].p50();
            format!("{} ({:.2})", work.shown(time, size), work.rate(time, size) / base)
        });
        table.row([work.name().to_owned(), work.unit().to_owned()].into_iter().chain(cells));
        let cells = times.iter().map(|samples| {
            let mut ends = [samples[n].percentile(0), samples[n].max()];
            ends.sort_by(|a, b| work.rate(*a, size).total_cmp(&work.rate(*b, size)));
            ends.map(|time| work.shown(time, size)).join(" to ")
        });
        spread.row([work.name().to_owned(), work.unit().to_owned()].into_iter().chain(cells));
    }
    let about = format!(
        "One loop device of {} MiB, in the page cache but for what is flushed; one connection over TCP on the loopback \
         address; clients and servers share the cores. The servers take turns, rounds: {rounds}. attachd has no part in \
         this; nbd-server's section is as attachd writes it (FLUSH, FUA). nbdcopy: the whole command, connecting \
         included, writing random bytes; fio counts from when it is connected. A server that is started for each \
         connection takes its time to connect, which is a large part of so small a copy and none of a large one.",
        size / MIB
    );
    let mut raw = Vec::new();
    for (kind, samples) in SERVER_KINDS.iter().zip(times) {
        for (work, samples) in WORKS.iter().zip(samples) {
            let of = match work.unit() {
                "requests/s" => "one request",
                "MiB/s" => "the whole disk",
                _ => "one",
            };
            raw.push((format!("{}; {}; time of {of}", kind.name(), work.name()).replace(',', ""), samples));
        }
    }
    Ok(Section { title: "Throughput, by NBD server", about, tables: vec![table, spread], goals: Vec::new(), raw })
}

/// One disk that every server offers.
struct Stage {
    export: String,
    size: u64,
    /// Random bytes: nbd-server's handling of zeroes must not be measured.
    source: PathBuf,
    _disk: lab::Disk,
    lab: Lab,
}

impl Stage {
    fn new(size: u64) -> Result<Self> {
        let lab = Lab::builder().build()?;
        let volume = lab.volume();
        lab.claim(&volume.serial)?;
        let mut disk = lab.disk(&volume.serial, size)?;
        lab.attach_settled(&mut disk)?;
        lab.publish(&volume.export(), &volume.link())?;
        let source = lab.dir().join("source");
        random_file(&source, size)?;
        let stage = Self { export: volume.export(), size, source, _disk: disk, lab };
        // For nbd-server, which serves the same link.
        let links = Links::new("/run/attachd/exports".into());
        // attachd's code writes only in a folder of its own user, which is root here for a moment.
        let owner = fs::metadata(FOLDER)?.uid();
        chown(FOLDER, Some(0), None)?;
        Sections::new(FOLDER.into(), links).write(volume.id.parse()?)?;
        chown(FOLDER, Some(owner), None)?;
        setup::give(&Path::new(FOLDER).join(format!("{}.conf", volume.export())))?;
        Ok(stage)
    }

    fn uri(&self) -> String {
        format!("nbd://{ADDRESS}/{}", self.export)
    }

    fn turn(&mut self, server: &mut Server, times: &mut [Samples; WORKS.len()]) -> Result<()> {
        server.start(&mut self.lab)?;
        for (work, samples) in WORKS.into_iter().zip(times) {
            let time = self.time(work).with_context(|| work.name())?;
            samples.add(time);
        }
        server.stop(&mut self.lab)
    }

    fn time(&self, work: Work) -> Result<Duration> {
        let uri = self.uri();
        match work {
            Work::Connect => {
                let begun = Instant::now();
                let client = NbdClient::connect(ADDRESS, &self.export)?;
                let time = begun.elapsed();
                ensure!(client.size() == self.size, "{} bytes served", client.size());
                Ok(time)
            }
            Work::Read => nbdcopy(&[&uri, "null:"]),
            Work::Write => nbdcopy(&["--flush", self.source.to_str().context("a path of the lab is text")?, &uri]),
            Work::FioRead => self.fio("read", &["--bs=256k", "--iodepth=16"]),
            Work::FioWrite => self.fio("write", &["--bs=256k", "--iodepth=16", "--end_fsync=1"]),
            Work::RandomRead => self.random("randread"),
            Work::RandomWrite => self.random("randwrite"),
        }
    }

    fn random(&self, how: &str) -> Result<Duration> {
        self.fio(how, &["--bs=4k", "--iodepth=32", "--time_based", "--runtime=1"])
    }
}

impl Stage {
    /// Returns the time of the whole disk, or of one request if the measurement is not about the whole disk.
    fn fio(&self, how: &str, more: &[&str]) -> Result<Duration> {
        let report = self.lab.dir().join("fio.json");
        let mut command = Command::new("fio");
        command.args(["--name=bench", "--ioengine=nbd", "--output-format=json"]).args(more);
        command.arg(format!("--uri={}", self.uri())).arg(format!("--rw={how}")).arg(format!("--size={}", self.size));
        // Its messages about the connection are not part of the report.
        command.arg("--output").arg(&report);
        run(&mut command)?;
        let report: Value = serde_json::from_slice(&fs::read(&report)?)?;
        let side = &report["jobs"][0][if how.ends_with("read") { "read" } else { "write" }];
        let figure = |name: &str| side[name].as_f64().filter(|figure| *figure > 0.0).with_context(|| format!("{side}"));
        if how.starts_with("rand") {
            return Ok(Duration::from_secs_f64(1.0 / figure("iops")?));
        }
        ensure!(side["io_bytes"].as_u64() == Some(self.size), "{side}");
        #[expect(clippy::cast_precision_loss, reason = "a disk of a bench is small")]
        Ok(Duration::from_secs_f64(self.size as f64 / figure("bw_bytes")?))
    }
}

fn nbdcopy(args: &[&str]) -> Result<Duration> {
    let begun = Instant::now();
    run(Command::new("nbdcopy").arg("--connections=1").args(args))?;
    Ok(begun.elapsed())
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("running {program} (`make bench` installs it)"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} ended with {}: {said}", output.status);
    Ok(())
}

fn random_file(path: &Path, size: u64) -> Result<()> {
    let mut random = std::io::Read::take(File::open("/dev/urandom")?, size);
    std::io::copy(&mut random, &mut File::create(path)?)?;
    Ok(())
}
