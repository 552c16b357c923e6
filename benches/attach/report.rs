//! Writes figures as tables; the printed and the written text are the same.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// The result of one benchmark.
pub(crate) struct Section {
    /// The heading.
    pub(crate) title: &'static str,
    /// What was measured and how, to explain the figures.
    pub(crate) about: String,
    /// The figures.
    pub(crate) tables: Vec<Table>,
    /// The goals.
    pub(crate) goals: Vec<Goal>,
    /// Every single sample: a name and its values in milliseconds, in the order of measurement.
    pub(crate) raw: Vec<(String, Samples)>,
}

/// A heading and rows, all as text.
pub(crate) struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// A goal, and whether it is met.
pub(crate) struct Goal {
    pub(crate) wanted: String,
    pub(crate) measured: String,
    pub(crate) met: bool,
}

/// Measured times in milliseconds. A time can be negative: a poll may see a link before udev's event is sent.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn add(&mut self, time: Duration) {
        self.0.push(time.as_secs_f64() * 1e3);
    }

    /// Adds the time between two moments, both in nanoseconds of one clock.
    pub(crate) fn add_between(&mut self, from_ns: i128, to_ns: i128) {
        #[expect(clippy::cast_precision_loss, reason = "a difference of seconds at most")]
        self.0.push((to_ns - from_ns) as f64 / 1e6);
    }

    pub(crate) fn extend(&mut self, more: &Self) {
        self.0.extend(&more.0);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the smallest sample that at least this percentage of samples do not exceed; NaN without samples.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn p50(&self) -> f64 {
        self.percentile(50)
    }

    pub(crate) fn p99(&self) -> f64 {
        self.percentile(99)
    }

    pub(crate) fn max(&self) -> f64 {
        self.percentile(100)
    }

    /// Returns p50, p99, minimum, maximum and number, as cells.
    pub(crate) fn cells(&self) -> [String; 5] {
        let times = [self.p50(), self.p99(), self.percentile(0), self.max()].map(ms);
        let [p50, p99, min, max] = times;
        [p50, p99, min, max, self.len().to_string()]
    }
}

/// The headings of [`Samples::cells`].
pub(crate) const SAMPLE_HEAD: [&str; 5] = ["p50 ms", "p99 ms", "min ms", "max ms", "samples"];

/// Formats milliseconds.
pub(crate) fn ms(value: f64) -> String {
    format!("{value:.3}")
}

impl Table {
    pub(crate) fn new(head: &[&str]) -> Self {
        Self { head: head.iter().map(ToString::to_string).collect(), rows: Vec::new() }
    }

    /// Makes a table whose rows are a name, samples, and further columns.
    pub(crate) fn of_samples(name: &str, more: &[&str]) -> Self {
        Self::new(&[&[name], &SAMPLE_HEAD[..], more].concat())
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Adds a row to a table of [`Table::of_samples`].
    pub(crate) fn samples(&mut self, name: &str, samples: &Samples, more: impl IntoIterator<Item = String>) {
        self.row([name.to_owned()].into_iter().chain(samples.cells()).chain(more));
    }

    fn markdown(&self) -> String {
        let columns = 0..self.head.len();
        let all = || std::iter::once(&self.head).chain(&self.rows);
        let width = |column: usize| all().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
        let widths: Vec<usize> = columns.map(|column| width(column).unwrap_or(0).max(3)).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).enumerate();
            // Names are aligned left, figures right.
            let cells = cells
                .map(|(n, (cell, width))| if n == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") });
            format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
        };
        let rule = widths
            .iter()
            .enumerate()
            .map(|(n, width)| if n == 0 { "-".repeat(*width) } else { format!("{}:", "-".repeat(width - 1)) });
        let rule = format!("| {} |\n", rule.collect::<Vec<_>>().join(" | "));
        let rows: String = self.rows.iter().map(line).collect();
        format!("{}{rule}{rows}", line(&self.head))
    }
}

impl Section {
    /// Returns the section as it is printed and written. `name` is the benchmark's, and that of its raw figures.
    pub(crate) fn markdown(&self, name: &str) -> String {
        let mut text = format!("## {}\n\n{}\n", self.title, self.about);
        for table in &self.tables {
            let _ = write!(text, "\n{}", table.markdown());
        }
        if !self.goals.is_empty() {
            let mut goals = Table::new(&["goal", "measured", "met"]);
            for Goal { wanted, measured, met } in &self.goals {
                goals.row([wanted.clone(), measured.clone(), if *met { "yes" } else { "**no**" }.to_owned()]);
            }
            let _ = write!(text, "\n{}", goals.markdown());
        }
        if !self.raw.is_empty() {
            let _ = write!(text, "\nEvery sample: [bench-raw/{name}.csv](bench-raw/{name}.csv)\n");
        }
        text
    }

    /// Returns one line per sample.
    fn csv(&self) -> String {
        let mut text = "series,sample,ms\n".to_owned();
        for (series, samples) in &self.raw {
            for (number, value) in samples.0.iter().enumerate() {
                let _ = writeln!(text, "{series},{number},{value:.4}");
            }
        }
        text
    }
}

/// Describes the machine.
pub(crate) fn machine() -> Result<String> {
    let cores = std::thread::available_parallelism()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let model = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = model.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    let date = jiff::Timestamp::now().strftime("%Y-%m-%d");
    Ok(format!(
        "{cores} cores ({}), Linux {}, {date}, attachd {} (release profile)",
        model.unwrap_or("unknown model"),
        kernel.trim(),
        env!("CARGO_PKG_VERSION"),
    ))
}

/// Writes the whole page and the raw figures below `folder`.
pub(crate) fn write(folder: &Path, machine: &str, sections: &[(&str, Section)]) -> Result<()> {
    let raw = folder.join("bench-raw");
    fs::create_dir_all(&raw).with_context(|| format!("creating {}", raw.display()))?;
    let mut page = format!(
        "# Benchmarks\n\nWritten by `make bench`; do not edit. Contenders run side by side in one run, so ratios mean \
         more than times.\n\n{machine}\n"
    );
    for (name, section) in sections {
        let _ = write!(page, "\n{}", section.markdown(name));
        if !section.raw.is_empty() {
            fs::write(raw.join(format!("{name}.csv")), section.csv())?;
        }
    }
    fs::write(folder.join("benchmarks.md"), page).context("writing benchmarks.md")
}
