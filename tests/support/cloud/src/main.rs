//! The stand-in by hand: says what a client needs, then each call as it comes. It plugs no disks.

use anyhow::Result;
use clap::Parser;
use stand_in::{Age, Cloud, NoPlug, Setup, Vm, Volume};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// A stand-in for CloudStack: its API as documented, without a cloud behind it.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where it listens.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// A server of long ago: it ignores the caller's job ids.
    #[arg(long)]
    old: bool,
    /// GET and requests without a time are taken, too.
    #[arg(long)]
    lax: bool,
    /// How long each job takes.
    #[arg(long, default_value_t = 500, value_name = "MILLISECONDS")]
    job_takes: u64,
    /// A VM that runs: its id, and the MAC address of its card.
    #[arg(long, value_name = "ID=MAC", default_value = "00000000-0000-4000-8000-000000000001=02:00:00:00:00:01")]
    vm: Vec<String>,
    /// A volume of 1 GiB that is attached to nothing.
    #[arg(long, value_name = "ID")]
    volume: Vec<String>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let age = if arguments.old { Age::Old } else { Age::New };
    let job_takes = Duration::from_millis(arguments.job_takes);
    let setup = Setup { listen: arguments.listen, age, enforce: !arguments.lax, job_takes };
    let cloud = Cloud::start(setup, Arc::new(NoPlug))?;
    for (number, vm) in arguments.vm.iter().enumerate() {
        let (id, mac) = vm.split_once('=').unwrap_or((vm, ""));
        cloud.add_vm(Vm { macs: vec![mac.to_owned()], ..Vm::running(id, &format!("vm-{number}")) });
        println!("vm:       {id}");
    }
    for id in &arguments.volume {
        cloud.add_volume(Volume::ready(id, "by hand", 1 << 30));
    }
    let key = cloud.key();
    println!("url:      {}\nkey:      {}\nsecret:   {}", cloud.url(), key.key, key.secret);
    println!("zone:     {}\noffering: {}", cloud.zone(), cloud.offering());
    let mut told = 0;
    loop {
        let is_new = |cloud: &Cloud| cloud.calls().get(told).is_some_and(|call| call.over);
        if cloud.wait(Duration::from_secs(3600), is_new) {
            println!("{}", cloud.calls()[told]);
            told += 1;
        }
    }
}
