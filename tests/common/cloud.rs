//! A lab whose host is a VM of the stand-in for CloudStack.

use lab::{Lab, LabCloud};
use stand_in::Setup;

use super::CONFIG;

/// Returns a lab with nbdkit and the stand-in. The daemon is configured, and not started.
pub(crate) fn lab_in_cloud() -> (Lab, LabCloud) {
    let mut lab = Lab::new();
    let cloud = lab.cloud(Setup::default()).unwrap();
    lab.attachd_config(&format!("{CONFIG}{}", cloud.config().unwrap())).unwrap();
    lab.nbdkit_start().unwrap();
    (lab, cloud)
}
