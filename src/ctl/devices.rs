//! `attachctl devices`.

use serde::Deserialize;

use super::client::Client;
use super::failure::Failure;
use super::output::Output;
use super::table::Table;
use super::units;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Devices {
    devices: Vec<Device>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Device {
    node: String,
    devnum: String,
    size_bytes: u64,
    read_only: bool,
    serial: Option<String>,
    link: Option<String>,
    link_target: Option<String>,
    uses: Vec<String>,
    settled: bool,
    volume_id: Option<String>,
    unusable: Option<String>,
}

impl Device {
    /// What stands in the way of its being a volume's, and what else is odd.
    fn remarks(&self) -> String {
        if let Some(unusable) = &self.unusable {
            return unusable.clone();
        }
        let mut remarks = self.uses.clone();
        if !self.settled {
            remarks.push("not reported by udev yet".to_owned());
        }
        let link = self.link.as_deref().unwrap_or("its by-id link");
        match self.link_target.as_deref() {
            Some("missing") => remarks.push(format!("{link} is missing")),
            Some(target) if target != self.devnum => remarks.push(format!("{link} leads to {target}")),
            _ => {}
        }
        if self.read_only {
            remarks.push("read-only".to_owned());
        }
        remarks.join("; ")
    }
}

pub(super) async fn run(client: &Client, output: &Output) -> Result<(), Failure> {
    let answer = client.get("devices", &[]).await?;
    output.answer(&answer, |list: &Devices| table(&list.devices).or("There are no disks."))
}

fn table(devices: &[Device]) -> Table<6> {
    let mut table = Table::new(["DEVICE", "NUMBER", "SIZE", "SERIAL", "VOLUME", "REMARKS"]);
    for device in devices {
        table.row([
            device.node.clone(),
            device.devnum.clone(),
            units::bytes(device.size_bytes),
            device.serial.clone().unwrap_or_default(),
            device.volume_id.clone().unwrap_or_default(),
            device.remarks(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remarks_name_everything_that_stands_in_the_way() {
        let odd = r#"{"devnum":"7:1","uses":["used as swap"],"settled":false,
                      "link":"/l","link_target":"7:2","read_only":true}"#;
        let device: Device = serde_json::from_str(odd).unwrap();
        assert_eq!(device.remarks(), "used as swap; not reported by udev yet; /l leads to 7:2; read-only");
        let fine = r#"{"devnum":"7:1","settled":true,"link":"/l","link_target":"7:1"}"#;
        let device: Device = serde_json::from_str(fine).unwrap();
        assert_eq!(device.remarks(), "");
    }
}
