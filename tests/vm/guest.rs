//! A guest: a machine, its disks, and the commands that run inside it.

use std::cell::RefCell;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use lab::Volume;
use lab::child::Proc;
use serde_json::{Value, json};

use crate::agent::{Agent, Output};
use crate::cloud::{GuestCloud, Slots, locked};
use crate::disk::{Bus, Disk};
use crate::image::{self, Image, ROOT_SERIAL, Suite};
use crate::machine::{AGENT, Machine, SLOTS, blockdev, node};
use crate::qmp::Qmp;
use crate::wire::Door;

/// Longer than a boot takes under software emulation on two busy cores.
const BOOT: Duration = Duration::from_mins(4);
/// Longer than anything else that works takes.
const SOON: Duration = Duration::from_mins(2);

pub(crate) struct Guest {
    name: String,
    machine: Machine,
    image: Image,
    folder: PathBuf,
    root: Disk,
    slots: Slots,
    /// CloudStack, if the guest is to be one of its VMs.
    cloud: Option<GuestCloud>,
    running: RefCell<Option<Running>>,
}

struct Running {
    qmp: Qmp,
    agent: Agent,
    qemu: Proc,
    boot: u32,
    _doors: tempfile::TempDir,
}

impl Guest {
    /// Makes a guest that was never started, with its own root disk. `name` is the test's.
    pub(crate) fn off(name: &str, machine: Machine) -> Self {
        Self::of(Suite::usual(), name, machine)
    }

    fn of(suite: Suite, name: &str, machine: Machine) -> Self {
        let image = image::image(suite);
        let folder = image::folder().join("run").join(name);
        let _ = fs::remove_dir_all(&folder);
        let _ = fs::remove_dir_all(failed(name));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("root.img");
        let copy = Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(&image.root).arg(&file).status();
        assert!(copy.unwrap().success());
        let serial = ROOT_SERIAL.to_owned();
        let root = Disk { id: "root".to_owned(), file, serial, read_only: false, bus: Bus::Virtio, storage: None };
        let name = name.to_owned();
        let (slots, running) = (Slots::default(), RefCell::new(None));
        Self { name, machine, image, folder, root, slots, cloud: None, running }
    }

    /// A guest that has booted as a VM of a CloudStack, on the network on which that is reached.
    pub(crate) fn up_in_cloud(name: &str, machine: Machine) -> Self {
        let mut guest = Self::off(name, machine);
        guest.cloud = Some(GuestCloud::start(machine, &guest.folder, &guest.slots));
        guest.start(&[]);
        guest.run(&guest.cloud().network());
        guest
    }

    /// The CloudStack whose VM it is.
    pub(crate) fn cloud(&self) -> &GuestCloud {
        self.cloud.as_ref().expect("it was made as a VM of a cloud")
    }

    /// Makes a guest that has booted, with only its root disk.
    pub(crate) fn up(name: &str, machine: Machine) -> Self {
        Self::up_of(Suite::usual(), name, machine)
    }

    /// As [`Guest::up`], with a certain Debian release.
    pub(crate) fn up_of(suite: Suite, name: &str, machine: Machine) -> Self {
        let guest = Self::of(suite, name, machine);
        guest.start(&[]);
        guest
    }

    /// Makes a volume's disk with a pattern in it.
    pub(crate) fn disk(&self, volume: &Volume, size: u64) -> Disk {
        Disk::of(&self.folder, volume, size)
    }

    /// Makes a disk of zeroes.
    pub(crate) fn blank(&self, serial: &str, size: u64) -> Disk {
        Disk::blank(&self.folder, serial, size)
    }

    /// Returns the guest's root disk.
    pub(crate) fn root(&self) -> Disk {
        self.root.clone()
    }

    /// Starts the guest with these disks in this order of slots (the root first if it is not among them), and waits
    /// until it has booted.
    pub(crate) fn start(&self, disks: &[&Disk]) {
        let begun = Instant::now();
        self.power_on(disks);
        self.agent_is_up();
        let agent = begun.elapsed();
        let state = self.booted();
        println!("{}: agent after {agent:.1?}, booted after {:.1?}: {state}", self.name, begun.elapsed());
    }

    /// Starts the guest without waiting.
    pub(crate) fn power_on(&self, disks: &[&Disk]) {
        assert!(self.running.borrow().is_none(), "it runs");
        let root = [&self.root];
        let has_root = disks.iter().any(|disk| disk.id == self.root.id);
        let disks: Vec<&Disk> = if has_root { &root[..0] } else { &root }.iter().chain(disks).copied().collect();
        let doors = tempfile::tempdir().unwrap();
        let [monitor, agent, of_cloud] = ["qmp", "agent", "cloud"].map(|name| Door::new(&doors.path().join(name)));
        let boot = (1..100).find(|boot| !self.console(*boot).exists()).unwrap();
        let console = self.console(boot);
        let mut command =
            self.machine.command(&self.image.kernel, &self.image.initrd, console.to_str().unwrap(), &monitor, &agent);
        let mut slots: [Option<String>; SLOTS] = Default::default();
        for (slot, disk) in disks.iter().enumerate() {
            command.args(["-blockdev", &blockdev(disk).to_string()]);
            command.args(["-device", &self.machine.device(disk, slot).to_string()]);
            slots[slot] = Some(disk.id.clone());
        }
        if let Some(cloud) = &self.cloud {
            cloud.arguments(&mut command, &of_cloud);
        }
        let said = fs::File::create(self.folder.join(format!("qemu-{boot}.log"))).unwrap();
        command.stderr(said);
        let qemu = Proc::spawn("QEMU", &mut command).unwrap();
        let wires = monitor.accept(&qemu, SOON).and_then(|wire| Some((wire, agent.accept(&qemu, SOON)?)));
        let Some((monitor, agent)) = wires else {
            let said = fs::read_to_string(self.folder.join(format!("qemu-{boot}.log"))).unwrap();
            panic!("QEMU ended at once: {said}");
        };
        *locked(&self.slots) = slots;
        if let Some(cloud) = &self.cloud {
            let wire = of_cloud.accept(&qemu, SOON).expect("QEMU connects all its monitors");
            cloud.power(Some(Qmp::new(wire)));
        }
        let (qmp, agent) = (Qmp::new(monitor), Agent::new(agent));
        *self.running.borrow_mut() = Some(Running { qmp, agent, qemu, boot, _doors: doors });
    }

    /// Waits until the agent of a boot that has begun answers.
    pub(crate) fn agent_is_up(&self) {
        self.with(|running| {
            let opened = |event: &Value| is_of_agent(event) && event["data"]["open"] == true;
            assert!(running.qmp.wait(opened, BOOT).is_some(), "no agent after {BOOT:?}; see the console");
            running.agent.sync(SOON).unwrap();
        });
    }

    /// Shuts the guest down in order.
    pub(crate) fn shut_down(&self) {
        self.with(|running| {
            // The answer may or may not come.
            let _ = running.agent.run("systemctl --no-block poweroff", SOON);
            running.qemu.wait(SOON).expect("the guest powers off");
        });
        *self.running.borrow_mut() = None;
    }

    /// Reboots the guest in the same machine.
    pub(crate) fn reboot(&self) {
        self.with(|running| {
            let _ = running.agent.run("systemctl --no-block reboot", SOON);
            let reset = |event: &Value| event["event"] == "RESET" && event["data"]["guest"] == true;
            assert!(running.qmp.wait(reset, SOON).is_some(), "the guest does not restart");
        });
        self.agent_is_up();
        self.booted();
    }

    /// Waits until everything is started. Returns what failed.
    fn booted(&self) -> String {
        let state = self.output_within("systemctl is-system-running --wait", BOOT);
        match state.out.trim() {
            "running" => "running".to_owned(),
            "degraded" => self.run("systemctl list-units --failed --plain --no-legend").trim().to_owned(),
            _ => panic!("{state:?}"),
        }
    }

    /// Kills the hypervisor.
    pub(crate) fn power_cut(&self) {
        self.with(|running| running.qemu.kill().unwrap());
        *self.running.borrow_mut() = None;
        self.cloud.iter().for_each(|cloud| cloud.power(None));
    }

    /// Plugs a disk into the first free slot. Returns when the hypervisor has done so.
    pub(crate) fn plug(&self, disk: &Disk) {
        let slot = {
            let mut slots = locked(&self.slots);
            let slot = slots.iter().position(Option::is_none).expect("a free slot");
            slots[slot] = Some(disk.id.clone());
            slot
        };
        self.qmp("blockdev-add", &blockdev(disk));
        self.qmp("device_add", &self.machine.device(disk, slot));
    }

    /// Plugs all of them, without waiting for the guest in between.
    pub(crate) fn plug_all(&self, disks: &[Disk]) {
        for disk in disks {
            self.plug(disk);
        }
    }

    /// Unplugs a disk and waits until it is gone. If the guest does not release it, the test fails.
    pub(crate) fn unplug(&self, disk: &Disk) {
        self.qmp("device_del", &json!({ "id": disk.id }));
        self.with(|running| {
            let gone =
                |event: &Value| event["event"] == "DEVICE_DELETED" && event["data"]["device"] == disk.id.as_str();
            assert!(running.qmp.wait(gone, SOON).is_some(), "the guest does not let go of {}", disk.id);
        });
        self.qmp("blockdev-del", &json!({ "node-name": node(disk) }));
        let mut slots = locked(&self.slots);
        let slot = slots.iter().position(|place| place.as_deref() == Some(&disk.id)).unwrap();
        slots[slot] = None;
    }

    /// Resizes a plugged disk.
    pub(crate) fn resize(&self, disk: &Disk, size: u64) {
        self.qmp("block_resize", &json!({ "node-name": node(disk), "size": size }));
    }

    /// Runs a command of the hypervisor's monitor.
    pub(crate) fn qmp(&self, command: &str, arguments: &Value) -> Value {
        self.with(|running| running.qmp.execute(command, arguments))
    }

    /// Runs a script in the guest, as root. It must succeed; returns its standard output.
    pub(crate) fn run(&self, script: &str) -> String {
        let told = self.output(script);
        assert!(told.code == 0, "in the guest: {script}\nended with {}: {}{}", told.code, told.out, told.err);
        told.out
    }

    /// Runs a script and returns its result, whatever it is.
    pub(crate) fn output(&self, script: &str) -> Output {
        self.output_within(script, SOON)
    }

    pub(crate) fn output_within(&self, script: &str, limit: Duration) -> Output {
        self.with(|running| running.agent.run(script, limit)).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Waits until a script in the guest succeeds, for conditions without an event.
    pub(crate) fn eventually(&self, script: &str) {
        let told =
            self.output(&format!("timeout 90 sh -c 'until ( {} ); do sleep 0.1; done'", script.replace('\'', "'\\''")));
        assert!(told.code == 0, "not even in the end: {script}: {told:?}");
    }

    fn with<T>(&self, act: impl FnOnce(&mut Running) -> T) -> T {
        act(self.running.borrow_mut().as_mut().expect("the guest runs"))
    }

    fn console(&self, boot: u32) -> PathBuf {
        self.folder.join(format!("console-{boot}.log"))
    }

    /// Saves what helps to explain a failure.
    fn leave_evidence(&mut self) {
        let place = failed(&self.name);
        let _ = fs::create_dir_all(&place);
        // The journal of all boots. It comes from the guest if the guest answers, else from its disk, to which
        // journald writes at once.
        let journal = "journalctl --no-pager --merge -o short-precise";
        let told = self.running.get_mut().as_mut().map(|running| {
            println!("the guest's boot {} is still up", running.boot);
            running.agent.run(journal, SOON)
        });
        if let Some(Ok(told)) = told {
            let _ = fs::write(place.join("journal.txt"), told.out);
        } else {
            *self.running.get_mut() = None;
            let dump = format!("rdump /var/log/journal {}", place.display());
            let _ = Command::new("debugfs").arg("-R").arg(dump).arg(&self.root.file).output();
        }
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|kind| kind == "log") {
                let _ = fs::copy(entry.path(), place.join(entry.file_name()));
            }
        }
        eprintln!("the guest's journal and console are in {}", place.display());
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.leave_evidence();
        }
        *self.running.get_mut() = None;
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn is_of_agent(event: &Value) -> bool {
    event["event"] == "VSERPORT_CHANGE" && event["data"]["id"] == AGENT
}

fn failed(name: &str) -> PathBuf {
    image::folder().join("failed").join(name)
}
