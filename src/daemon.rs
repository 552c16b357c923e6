//! The daemon's start and stop.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::sync::watch;
use tokio::task::{JoinHandle, LocalSet};

use crate::accounts::id_of;
use crate::api;
use crate::blocking::blocking;
use crate::budget;
use crate::claims::{Claims, Restored};
use crate::clock;
use crate::cloud;
use crate::config::{self, ServerSettings, Settings};
use crate::device::evidence::Ground;
use crate::device::host_changes::HostChanges;
use crate::device::monitor::Monitor;
use crate::device::reader_process;
use crate::device::sysfs::Sysfs;
use crate::engine::real::{ClaimFolder, Tokio};
use crate::engine::tools::Tools;
use crate::engine::{self, Engine, Handle, Inputs};
use crate::export::backend::{Backend, Contents, Which};
use crate::export::links::Links;
use crate::export::nbd_server::backend::NbdServerBackend;
use crate::export::nbd_server::check::ServerUser;
use crate::export::nbd_server::mode::Mode;
use crate::export::nbd_server::sections::Sections;
use crate::export::nbdkit::NbdkitBackend;
use crate::export::probe::Endpoint;
use crate::export::server::{ServerFile, ServerWatch};
use crate::export::tls::Tls;
use crate::export::unit::Explain;
use crate::folder_watch::FolderWatch;
use crate::helper_client::HelperClient;
use crate::identity::VolumeId;
use crate::limits;
use crate::memory;
use crate::operations::host::ThisHost;
use crate::operations::tools::{NoVm, OwnVm};
use crate::operations::{self, Operations};
use crate::projection;
use crate::reload::Reload;
use crate::signals::{Asks, Signals};
use crate::store::{self, Store};
use crate::telemetry;
use crate::volume::Record;

/// The time limit for running requests when the daemon stops.
const GRACE: Duration = Duration::from_secs(5);

/// How many tasks are polled before the runtime looks for events and for what other threads have done. tokio's own values
/// (61 and 31) are milliseconds while long lists are made, and a disk waits for that at each step until it is served.
const AT_ONCE: u32 = 2;

/// Runs the daemon until SIGTERM or SIGINT. Exports stay served.
pub fn run(config: &Path) -> anyhow::Result<()> {
    memory::few_heaps();
    let settings = config::load(config)?;
    // This path stays valid even if an upgrade has replaced the program file.
    reader_process::begin("/proc/self/exe".into());
    let runtime = runtime().context("cannot start the runtime")?;
    // The monitor's libudev objects stay on this thread.
    let outcome = LocalSet::new().block_on(&runtime, serve(settings, config));
    // A thread that is stuck in the kernel must not keep the daemon from ending.
    runtime.shutdown_background();
    outcome.map_err(limits::explained_end)
}

/// The runtime, with all tasks on this thread. Its own blocking threads are not used, because it panics if it cannot start
/// one (`src/blocking.rs`).
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().event_interval(AT_ONCE).global_queue_interval(AT_ONCE).build()
}

async fn serve(settings: Settings, config: &Path) -> anyhow::Result<()> {
    let _lock = store::lock::take(&settings.store.path, telemetry::manager::waiting)?;
    budget::take_all().context("cannot raise the limit of open files")?;
    let sysfs = Sysfs::new(settings.device.schemes.clone(), settings.device.host_disks.clone());
    let ground = Ground {
        boot_id: sysfs.boot_id().context("cannot read this boot's id")?,
        nbd_gid: id_of("/etc/group", &settings.device.nbd_group)
            .context("the NBD server could open no disk ([device] nbd_group)")?,
    };
    let tls = Tls::new(settings.export.tls.clone(), settings.export.listen.ip())?;
    // Subscribe first and read the present state after that, so that no change is missed.
    let monitor = Monitor::subscribe()?;
    let host_changes = HostChanges::watch(&sysfs).context("cannot watch what this host mounts and swaps to")?;
    let (store, store_task, records) = Store::open(store::Options {
        path: &settings.store.path,
        history_days: settings.history.days,
        boot_id: &ground.boot_id,
        spare: settings.api.socket.parent().unwrap_or(Path::new("/run")),
    })
    .await?;
    let projection = projections(&store, &settings);
    let claims = Claims::new(settings.store.claims.clone());
    let restored = restored_claims(&claims, &records).await;
    let server_file = server_file(&settings.export.server);
    let watch_server = ServerWatch::new(settings.export.pid_file.clone(), server_file)?.explaining(Explain {
        unit: settings.export.server.unit(),
        program: settings.export.server.name(),
        listen: settings.export.listen,
    });
    let listeners = api::Listeners::open(&settings.api)?;

    others_closed(settings.clone()).await?;
    let stats = monitor.stats();
    let server = endpoint(&settings, &tls, server_file);
    let backend = backend(&settings, ground.nbd_gid)?;
    let inputs = Inputs::default();
    let helper = HelperClient::new(settings.helper.socket.clone());
    let tools = Tools {
        clock: Arc::new(clock::System),
        outside: Arc::new(Tokio),
        disks: Arc::new(engine::Reader::new(sysfs, &inputs)),
        truth: Arc::new(store.clone()),
        claims: Arc::new(ClaimFolder::new(claims).context("cannot start the thread that writes claims")?),
        limits: settings.limits,
        stacks: host_changes.stacks(),
        backend: Arc::clone(&backend),
        helper: Arc::new(helper.clone()),
        vm_id: settings.host.vm_id.clone(),
        server: Arc::new(server.clone()),
        server_unit: settings.export.server.unit(),
    };
    // The watch starts before the folders are read, so that no change is missed.
    let watch_folders = watch_folders(&settings, &*backend).context("cannot watch the folders")?;
    let (mut engine, handle) = Engine::new(ground, tools, inputs, records, &restored);
    engine.look_around().await.context("cannot read the list of disks")?;
    let (stop, stopping) = watch::channel(false);
    let mut engine = tokio::spawn(engine.run(stopped(stopping)));
    let monitor = tokio::task::spawn_local(monitor.follow(handle.inputs()));
    let host_changes = tokio::spawn(host_changes.follow(handle.inputs()));
    let watch_folders = tokio::spawn(watch_folders.follow(handle.inputs()));
    let watch_server = tokio::spawn(watch_server.follow(handle.inputs()));
    let cloud = settings.cloudstack.clone().map(|cloudstack| cloud::Access::new(cloudstack, &settings.host.vm_id));
    let reload = Reload::new(config, settings, handle.clone(), store.clone(), tls, cloud.clone());
    let operations = operations(&store, (&handle, &server, helper), cloud.as_ref()).await?;
    let context = api::Context::new(api::Parts {
        operations: operations.clone(),
        engine: handle.clone(),
        store: store.clone(),
        cloud,
        in_use: reload.in_use(),
        monitor: stats,
        backend,
        server: &server,
        listeners: listeners.shown(),
    });
    let (stop_serving, serving_stops) = watch::channel(false);
    let server = tokio::spawn(api::serve(listeners, api::router(context), serving_stops));
    started();
    let manager = tokio::spawn(telemetry::manager::report(handle.clone()));

    tokio::select! {
        told = until_told_to_stop(&reload) => told?,
        // If one of these ends, it is because of a defect, and nothing would be revoked any more. A new start repairs
        // everything.
        ended = &mut engine => bail!("the engine has ended: {ended:?}"),
        ended = monitor => bail!("the monitor has ended: {ended:?}"),
        ended = host_changes => bail!("the watch on what this host uses has ended: {ended:?}"),
        ended = watch_folders => bail!("the watch on the folders has ended: {ended:?}"),
        ended = watch_server => bail!("the watch on the NBD server has ended: {ended:?}"),
    }
    telemetry::manager::stopping();
    manager.abort();
    // New requests are not accepted; they wait in the socket's queue for the next start. Running requests get their
    // answers. Event streams are ended, because they would never end by themselves.
    handle.end_event_streams().await?;
    let _ = stop_serving.send(true);
    if tokio::time::timeout(GRACE, server).await.is_err() {
        tracing::warn!("some requests did not end within {} s; cut", GRACE.as_secs());
    }
    operations.stop();
    let _ = stop.send(true);
    engine.await.context("the engine failed")?;
    drop((handle, store, reload, operations));
    closed(store_task).await;
    projection.iter().for_each(JoinHandle::abort);
    tracing::info!("attachd has stopped; exports stay served");
    Ok(())
}

/// The start is over.
fn started() {
    // It has used more than what remains: the OpenAPI document, the text of the migrations, the command line.
    memory::give_back();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "attachd is up");
}

/// Starts to show the store to those who read the predecessor's tables.
fn projections(store: &Store, settings: &Settings) -> Vec<JoinHandle<()>> {
    let port = settings.export.listen.port();
    let volumes = projection::start(store, port);
    let mariadb = projection::start_mariadb(store, settings.projection.as_ref(), port);
    // Without CloudStack there are no operations.
    let operations = settings.cloudstack.is_some().then(|| projection::start_operations(store));
    [Some(volumes), Some(mariadb), operations].into_iter().flatten().collect()
}

/// Waits until the store is closed, but not for long.
async fn closed(store_task: JoinHandle<()>) {
    if tokio::time::timeout(GRACE, store_task).await.is_err() {
        tracing::warn!("the store did not close in time; the next start recovers it");
    }
}

/// Continues the operations that are open.
async fn operations(
    store: &Store,
    (engine, server, helper): (&Handle, &Endpoint, HelperClient),
    cloud: Option<&cloud::Access>,
) -> anyhow::Result<Operations> {
    let own_vm: Arc<dyn OwnVm> = match cloud {
        Some(cloud) => Arc::clone(cloud.own_vm()) as Arc<dyn OwnVm>,
        None => Arc::new(NoVm),
    };
    let tools = operations::Tools {
        cloud: cloud.map(cloud::Access::cloud),
        host: Arc::new(ThisHost::new(engine.clone(), server.clone(), helper)),
        records: Arc::new(store.clone()),
        own_vm,
        clock: Arc::new(clock::System),
    };
    let (open, last_number, placeholders) = store.open_operations().await.context("cannot read the operations")?;
    Ok(Operations::start(tools, open, last_number, placeholders))
}

/// See [`close_others`].
async fn others_closed(settings: Settings) -> anyhow::Result<()> {
    blocking(move || close_others(&settings)).await.context("cannot look for other exports")
}

/// Watches the folders of exports and the folder of claims.
fn watch_folders(settings: &Settings, backend: &dyn Backend) -> std::io::Result<FolderWatch> {
    let watched = backend.folders().into_iter().map(|(which, folder)| (which, folder.path().to_owned()));
    FolderWatch::new(watched.chain([(Which::Claims, settings.store.claims.clone())]))
}

/// Where the NBD server answers.
fn endpoint(settings: &Settings, tls: &Tls, server_file: ServerFile) -> Endpoint {
    let server = Endpoint::new(settings.export.listen, tls.clone());
    if server_file == ServerFile::Marker { server.started_for_each() } else { server }
}

/// Makes the configured NBD backend.
fn backend(settings: &Settings, nbd_gid: u32) -> anyhow::Result<Arc<dyn Backend>> {
    let ServerSettings::NbdServer { chosen, main_file } = &settings.export.server else {
        return Ok(Arc::new(NbdkitBackend(Links::new(settings.export.folder.clone()))));
    };
    tracing::info!(mode = %chosen.mode, "nbd-server serves: {}", chosen.because);
    let uid =
        id_of("/etc/passwd", &settings.device.nbd_group).context("whether nbd-server can read its files is unknown")?;
    let links = Links::new(config::LINKS_FOLDER.into());
    Ok(Arc::new(NbdServerBackend {
        sections: Sections::new(settings.export.folder.clone(), links.clone()),
        links,
        main_file: main_file.clone(),
        reader: ServerUser { uid, gid: nbd_gid },
        mode: chosen.mode,
        listen: settings.export.listen.ip(),
    }))
}

/// Removes exports that an earlier configuration made for another NBD server or in another folder, because nobody
/// would revoke them any more. (In the other direction, links without a section are removed together with all links
/// that are not on record.) May block for long.
fn close_others(settings: &Settings) {
    let links = Links::new(config::LINKS_FOLDER.into());
    let sections = Sections::new(config::SECTIONS_FOLDER.into(), links.clone());
    let nobody = BTreeSet::new();
    // Neither folder needs to exist.
    if settings.export.folder != Path::new(config::SECTIONS_FOLDER) {
        close(|| sections.list(&nobody), |volume| links.remove(volume).and_then(|()| sections.remove(volume)));
    }
    if settings.export.server == ServerSettings::Nbdkit && settings.export.folder != Path::new(config::LINKS_FOLDER) {
        close(|| links.list(&nobody), |volume| links.remove(volume));
    }
}

fn close(list: impl Fn() -> std::io::Result<Contents>, remove: impl Fn(VolumeId) -> std::io::Result<()>) {
    loop {
        let listed = list().unwrap_or_default();
        let mut failed = false;
        for volume in listed.strays {
            match remove(volume) {
                Ok(()) => tracing::warn!(VOLUME_ID = %volume, "its export by another NBD server is taken away"),
                Err(error) => {
                    failed = true;
                    tracing::error!(VOLUME_ID = %volume, %error, "its export by another NBD server cannot be taken away: do it by hand");
                }
            }
        }
        if failed || !listed.more_strays {
            return;
        }
    }
}

fn server_file(server: &ServerSettings) -> ServerFile {
    match server {
        ServerSettings::NbdServer { chosen, .. } if chosen.mode == Mode::Socket => ServerFile::Marker,
        _ => ServerFile::Pid(server.name()),
    }
}

/// Restores the claims from the store, in case claims were added or removed by hand. A failure does not stop the
/// start, because exports must be revoked all the same.
async fn restored_claims(claims: &Claims, records: &[Record]) -> std::io::Result<Restored> {
    let restoration = claims.restoration(records.iter().map(|record| record.intent.volume).collect(), Vec::new());
    blocking(move || restoration.run()).await?
}

async fn until_told_to_stop(reload: &Reload) -> anyhow::Result<()> {
    let mut signals = Signals::listen().context("cannot listen for signals")?;
    loop {
        match signals.next().await {
            Asks::Stop => return Ok(()),
            Asks::Reload => {
                telemetry::manager::reloading();
                reload.carry_out().await?;
                telemetry::manager::ready();
            }
        }
    }
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stop| *stop).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Poll;

    use tokio::sync::oneshot;

    /// How often a task that never rests is polled from when something happens until the task is polled that waits for it.
    fn polls_until_heard(
        runtime: &tokio::runtime::Runtime,
        waits: impl Future<Output = ()> + Send + 'static,
        happens: impl FnOnce() + Send + 'static,
    ) -> u32 {
        let heard = Arc::new(AtomicBool::new(false));
        let (told, mut happens, mut polls) = (Arc::clone(&heard), Some(happens), 0);
        runtime.block_on(async move {
            tokio::spawn(async move {
                waits.await;
                told.store(true, Ordering::Relaxed);
            });
            let busy = std::future::poll_fn(move |cx| {
                polls += 1;
                if polls == 1000
                    && let Some(happens) = happens.take()
                {
                    happens();
                }
                if heard.load(Ordering::Relaxed) {
                    return Poll::Ready(polls - 1000);
                }
                cx.waker().wake_by_ref();
                Poll::Pending
            });
            tokio::spawn(busy).await.unwrap()
        })
    }

    fn event(runtime: &tokio::runtime::Runtime) -> u32 {
        let (mut writer, reader) = UnixStream::pair().unwrap();
        reader.set_nonblocking(true).unwrap();
        let waits = async move { tokio::net::UnixStream::from_std(reader).unwrap().readable().await.unwrap() };
        polls_until_heard(runtime, waits, move || writer.write_all(b"x").unwrap())
    }

    fn of_another_thread(runtime: &tokio::runtime::Runtime) -> u32 {
        let (done, outcome) = oneshot::channel();
        let other = || std::thread::spawn(move || done.send(()).unwrap()).join().unwrap();
        polls_until_heard(runtime, async move { outcome.await.unwrap() }, other)
    }

    #[test]
    fn what_happens_is_noticed_within_a_few_polls_also_while_other_tasks_never_rest() {
        let ours = runtime().unwrap();
        assert!(event(&ours) <= 3 * AT_ONCE);
        assert!(of_another_thread(&ours) <= 3 * AT_ONCE);
        // The control: tokio's own settings. Where in its round it happens is chance.
        let usual = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert!((0..5).map(|_| event(&usual)).max().unwrap() > 6 * AT_ONCE);
        assert!((0..5).map(|_| of_another_thread(&usual)).max().unwrap() > 6 * AT_ONCE);
    }
}
