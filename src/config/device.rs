//! The section `[device]`.

use std::path::PathBuf;

use toml::Spanned;
use toml::de::DeValue;

use super::changes::Changes;
use super::text::{Setting, TomlSection};
use crate::device::scheme::{self, Scheme};

/// The settings about disks.
#[derive(Clone)]
pub struct DeviceSettings {
    /// `schemes`: the kinds of disk that are matched.
    pub schemes: Vec<&'static dyn Scheme>,
    /// `nbd_group`: the group whose members may open claimed disks.
    pub nbd_group: String,
    /// `host_disks`: the folder of files that are named after the serials of this host's own disks.
    pub host_disks: PathBuf,
}

impl Default for DeviceSettings {
    fn default() -> Self {
        Self {
            schemes: scheme::by_name("virtio").into_iter().collect(),
            nbd_group: "attachd-nbd".into(),
            host_disks: "/etc/attachd/host-disks".into(),
        }
    }
}

impl DeviceSettings {
    pub(super) fn read(&mut self, section: &mut TomlSection<'_, '_>) {
        section.set("schemes", &mut self.schemes);
        section.set("nbd_group", &mut self.nbd_group);
        section.set("host_disks", &mut self.host_disks);
    }

    pub(super) fn compare(&self, new: &Self, changes: &mut Changes) {
        let Self { schemes, nbd_group, host_disks } = self;
        let names = |schemes: &[&'static dyn Scheme]| schemes.iter().map(|scheme| scheme.name()).collect::<Vec<_>>();
        changes.restart("[device] schemes", names(schemes) != names(&new.schemes));
        changes.restart("[device] nbd_group", *nbd_group != new.nbd_group);
        changes.restart("[device] host_disks", *host_disks != new.host_disks);
    }
}

impl Setting for Vec<&'static dyn Scheme> {
    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, String> {
        let names: Vec<&str> = scheme::ALL.iter().map(|scheme| scheme.name()).collect();
        let wrong = || format!("takes a list of {}, like [\"virtio\"]", names.join(", "));
        let list = value.get_ref().as_array().ok_or_else(wrong)?;
        let schemes: Option<Self> = list.iter().map(|name| name.get_ref().as_str().and_then(scheme::by_name)).collect();
        schemes.filter(|schemes| !schemes.is_empty()).ok_or_else(wrong)
    }
}
