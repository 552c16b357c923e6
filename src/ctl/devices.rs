//! `attachctl devices`.

use super::client::ApiClient;
use super::failure::Failure;
use super::output::Output;
use super::table::TextTable;
use super::units;
use crate::wire::{DeviceList, DeviceView};

/// Describes why the device cannot be a volume's disk, and what else is unusual.
fn remarks(device: &DeviceView) -> String {
    if let Some(unusable) = &device.unusable {
        return unusable.clone();
    }
    let mut remarks = device.uses.clone();
    if !device.settled {
        remarks.push("not reported by udev yet".to_owned());
    }
    let link = device.link.as_deref().unwrap_or("its by-id link");
    match device.link_target.as_deref() {
        Some("missing") => remarks.push(format!("{link} is missing")),
        Some(target) if target != device.devnum.to_string() => remarks.push(format!("{link} leads to {target}")),
        _ => {}
    }
    if device.read_only {
        remarks.push("read-only".to_owned());
    }
    remarks.join("; ")
}

pub(super) async fn run(client: &ApiClient, output: &Output) -> Result<(), Failure> {
    let answer = client.get("devices", &[]).await?;
    output.answer(&answer, |list: &DeviceList| table(&list.devices).or("There are no disks."))
}

fn table(devices: &[DeviceView]) -> TextTable<6> {
    let mut table = TextTable::new(["DEVICE", "NUMBER", "SIZE", "SERIAL", "VOLUME", "REMARKS"]);
    for device in devices {
        table.row([
            device.node.clone(),
            device.devnum.to_string(),
            units::bytes(device.size_bytes),
            device.serial.map_or(String::new(), |serial| serial.to_string()),
            device.volume_id.map_or(String::new(), |volume| volume.to_string()),
            remarks(device),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DevNum;

    #[test]
    fn remarks_name_every_obstacle() {
        let numbered = |minor| DevNum { major: 7, minor };
        let odd = DeviceView {
            node: "/dev/loop1".into(),
            devnum: numbered(1),
            diskseq: 5,
            size_bytes: 512,
            read_only: true,
            scheme: None,
            serial: None,
            link: Some("/l".into()),
            link_target: Some(numbered(2).to_string()),
            uses: vec!["used as swap".into()],
            settled: false,
            volume_id: None,
            unusable: None,
            unread: None,
        };
        assert_eq!(remarks(&odd), "used as swap; not reported by udev yet; /l leads to 7:2; read-only");
        let target = Some(numbered(1).to_string());
        let fine = DeviceView { read_only: false, link_target: target, uses: Vec::new(), settled: true, ..odd };
        assert_eq!(remarks(&fine), "");
    }
}
