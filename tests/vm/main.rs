//! attachd in its real environment: a Debian guest with its own kernel, systemd, udev and NBD server, whose disks the
//! hypervisor plugs and unplugs. `make vm-test` runs this; `cargo test` does not.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod agent;
mod attachd;
mod cloud;
mod disk;
mod guest;
mod hammer;
mod idle;
mod image;
mod machine;
#[allow(dead_code, reason = "the tests of the service use the rest")]
#[path = "../service/package.rs"]
mod package;
mod qemu;
mod qmp;
mod template;
mod udevd_trouble;
mod wire;

mod cloud_attach;
mod contents;
mod cycles;
mod eleven;
mod full_disk;
mod host_around;
mod host_disks;
mod name_reuse;
mod odd_disks;
mod power_cut;
mod procedures;
mod reboot;
mod scsi;
mod served;
mod stall;
mod var_apart;
