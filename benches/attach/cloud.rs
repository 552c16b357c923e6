//! An attach, from the caller's request to a served export, without CloudStack's own time; and the predecessor's way beside it.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use attachd::cloud::{Client, Cloud as _, CloudSettings, JobId, JobStatus, SecretFile, VmId};
use attachd::identity::VolumeId;
use lab::{Api, Lab, LabCloud, Volume};
use serde_json::{Value, json};
use stand_in::Setup;

use crate::Plan;
use crate::report::{Goal, Samples, Section, Table, ms};
use crate::setup::{self, LIMIT, now_ns};

/// How often the predecessor asks for a job, and then for the link.
const JOB_POLL: Duration = Duration::from_secs(2);
const LINK_POLL: Duration = Duration::from_millis(100);

/// A job takes up to this long, evenly distributed: so it ends at any moment between two polls.
const LONGEST_JOB_MS: u64 = 2000;

pub(crate) fn bench(plan: Plan) -> Result<Section> {
    let (ours, theirs) = (plan.count(100, 3), plan.count(30, 2));
    let mut lab = Lab::builder().build()?;
    let cloud = lab.cloud(Setup::default())?;
    lab.attachd_config(&format!("{}{}", setup::CONFIG, cloud.config()?))?;
    lab.nbdkit_start()?;
    let attachd = setup::start(&lab)?;
    let api = attachd.api();
    let mut dice = fastrand::Rng::with_seed(12);
    let mut job_takes = || Duration::from_millis(dice.u64(0..LONGEST_JOB_MS));

    // Which VM this host is, is found out before the first one.
    by_attachd(&lab, &cloud, &api, Duration::ZERO)?;
    let (mut attached, mut polled) = (Samples::default(), Samples::default());
    for n in 1..=ours {
        let (from, to) = by_attachd(&lab, &cloud, &api, job_takes())?;
        attached.add_between(from, to);
        if n % 20 == 0 {
            println!("{n} of {ours} by attachd");
        }
    }
    let client = client(&cloud)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for n in 1..=theirs {
        let (from, to) = runtime.block_on(by_polling(&lab, &cloud, &client, job_takes()))?;
        polled.add_between(from, to);
        if n % 10 == 0 {
            println!("{n} of {theirs} by polling");
        }
    }

    let mut table = Table::of_samples("", &[]);
    table.samples("attachd: until the export is served", &attached, []);
    table.samples("the predecessor's way: until the link is seen", &polled, []);
    let times = polled.p50() / attached.p50();
    let goals = vec![
        Goal {
            wanted: "an attach costs less than 3 ms besides CloudStack's own time (median)".to_owned(),
            measured: format!("{} ms", ms(attached.p50())),
            met: attached.p50() < 3.0,
        },
        Goal {
            wanted: "100 times less than the predecessor's way (medians)".to_owned(),
            measured: format!("{times:.0} times"),
            met: times >= 100.0,
        },
    ];
    let about = format!(
        "From the caller's request to its answer, less the time from the beginning to the end of CloudStack's job. The stand-in \
         for CloudStack attaches a loop device at the job's end; a job takes from 0 to {LONGEST_JOB_MS} ms. attachd: `POST \
         /api/v1/operations` and then `?wait=done`, so until an NBD handshake has succeeded. The predecessor's way: the same call \
         by attachd's own client, the job asked for every {} s, then the link looked for every {} ms; its export would come on \
         top.",
        JOB_POLL.as_secs(),
        LINK_POLL.as_millis()
    );
    let raw = vec![("attachd".to_owned(), attached), ("predecessor's way".to_owned(), polled)];
    Ok(Section { title: "Attach through CloudStack", about, tables: vec![table], goals, raw })
}

/// A volume that is ready, and a job that takes this long.
fn prepared(lab: &Lab, cloud: &LabCloud, job_takes: Duration) -> Volume {
    let volume = lab.volume();
    cloud.add(&volume, 1 << 20);
    cloud.set_job_takes(job_takes);
    volume
}

/// The moment from which attachd's time counts, and that of the answer.
fn by_attachd(lab: &Lab, cloud: &LabCloud, api: &Api, job_takes: Duration) -> Result<(i128, i128)> {
    let volume = prepared(lab, cloud, job_takes);
    let from = now_ns();
    done(api, &json!({ "type": "attach", "volume_id": volume.id }))?;
    let to = now_ns();
    let own = own_time(cloud)?;
    cloud.set_job_takes(Duration::ZERO);
    done(api, &json!({ "type": "detach", "volume_id": volume.id }))?;
    Ok((from + own, to))
}

fn done(api: &Api, request: &Value) -> Result<()> {
    let begun = api.post("/api/v1/operations", request)?.expect(201)?;
    let id = begun["id"].as_str().context("an operation has an id")?;
    let path = format!("/api/v1/operations/{id}?wait=done&timeout_seconds=60");
    let ended = api.request("GET", &path, None, LIMIT * 2)?.expect(200)?;
    ensure!(ended["status"] == "completed", "{ended:#}");
    Ok(())
}

/// How long CloudStack's last job took.
fn own_time(cloud: &LabCloud) -> Result<i128> {
    cloud.wait_quiet(LIMIT)?;
    let job = cloud.jobs().pop().context("there is a job")?;
    let completed = job.completed.context("it has ended")?;
    Ok(completed.as_nanosecond() - job.created.as_nanosecond())
}

async fn by_polling(lab: &Lab, cloud: &LabCloud, client: &Client, job_takes: Duration) -> Result<(i128, i128)> {
    let volume = prepared(lab, cloud, job_takes);
    let (id, vm): (VolumeId, VmId) = (volume.id.parse()?, cloud.vm_here().parse()?);
    let wish: JobId = Volume::random().id.parse()?;
    let from = now_ns();
    let job = client.attach(wish, id, &vm, None).await?.job;
    loop {
        tokio::time::sleep(JOB_POLL).await;
        match client.job(job).await? {
            Some(JobStatus::Succeeded { .. }) => break,
            Some(JobStatus::Running) => {}
            other => bail!("the job has not succeeded: {other:?}"),
        }
    }
    while !volume.link().exists() {
        tokio::time::sleep(LINK_POLL).await;
    }
    let to = now_ns();
    let own = own_time(cloud)?;
    cloud.detach(&volume.id)?;
    Ok((from + own, to))
}

/// attachd's own client, so that both ways call by the same means.
fn client(cloud: &LabCloud) -> Result<Client> {
    let mut settings = CloudSettings::new(cloud.url().parse()?);
    settings.key_file = SecretFile::Named("/etc/attachd/cloudstack-key".into());
    settings.secret_file = SecretFile::Named("/etc/attachd/cloudstack-secret".into());
    Ok(Client::new(settings))
}
