//! Chooses the mode in which nbd-server is used. Pure.

use std::fmt;

use super::version::{Installed, Signal};

/// How nbd-server learns of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One server process reads its files again at SIGHUP.
    Signal,
    /// systemd starts one server for each connection, and each server reads the files.
    Socket,
}

impl Mode {
    /// Returns the name of this mode in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Signal => "signal",
            Self::Socket => "socket",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The chosen mode, and the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChosenMode {
    /// The mode.
    pub mode: Mode,
    /// Why this mode was chosen.
    pub because: String,
    /// A remark for the operator about this mode, if any.
    pub advice: Option<String>,
}

/// Chooses the mode. `wanted` is the configuration's, `None` for `auto`. `installed` is this host's nbd-server,
/// `None` if unknown. `held` is whether systemd holds the port for socket mode.
///
/// # Errors
/// If the wanted mode would not work, the error says why and what to do instead.
pub fn choose(wanted: Option<Mode>, installed: Option<&Installed>, held: bool) -> Result<ChosenMode, String> {
    let advice = || installed.and_then(Installed::advice);
    let chosen = |mode, because: String, advice| Ok(ChosenMode { mode, because, advice });
    match (wanted, installed, installed.map(Installed::signal)) {
        (Some(Mode::Socket), ..) => chosen(Mode::Socket, "the configuration says so".into(), None),
        (Some(Mode::Signal), Some(_), Some(Signal::Refused)) => Err(advice().unwrap_or_default()),
        (Some(Mode::Signal), None, _) => Err(
            "the version of nbd-server is unknown (there is no Debian package of it), and some die of the signal: say \
             nbd_server_version = \"…\", as `nbd-server -V` tells it, or use mode = \"socket\""
                .into(),
        ),
        (Some(Mode::Signal), ..) => chosen(Mode::Signal, "the configuration says so".into(), advice()),
        (None, ..) if held => chosen(
            Mode::Socket,
            "attachd-nbd-server.socket holds the port: systemd starts one for each connection".into(),
            None,
        ),
        (None, Some(installed), Some(Signal::Allowed)) => {
            chosen(Mode::Signal, format!("nbd-server {installed} takes up new exports at a signal"), None)
        }
        (None, Some(_), _) => chosen(Mode::Socket, advice().unwrap_or_default(), None),
        (None, None, _) => chosen(
            Mode::Socket,
            "the version of nbd-server is unknown: socket mode is safe with every version".into(),
            None,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(version: &str) -> Option<Installed> {
        Installed::from_package(version)
    }

    fn chosen(wanted: Option<Mode>, installed: Option<&Installed>, held: bool) -> Result<Mode, String> {
        choose(wanted, installed, held).map(|chosen| chosen.mode)
    }

    #[test]
    fn auto_chooses_the_signal_only_for_a_version_that_survives_any_file_in_its_folder() {
        let auto = |installed: Option<Installed>, held| chosen(None, installed.as_ref(), held).unwrap();
        assert_eq!(auto(package("1:3.26.1-6"), false), Mode::Signal);
        assert_eq!(auto(package("1:3.26.1-6"), true), Mode::Socket, "the unit decides");
        assert_eq!(auto(package("1:3.24-1.1"), false), Mode::Socket);
        assert_eq!(auto(package("1:3.26.1-1"), false), Mode::Socket);
        assert_eq!(auto(None, false), Mode::Socket);
    }

    #[test]
    fn signal_mode_is_refused_for_a_version_that_dies_of_it_and_the_error_names_the_alternative() {
        let why = chosen(Some(Mode::Signal), package("1:3.24-1.1").as_ref(), false).unwrap_err();
        assert!(why.contains("3.24-1.1") && why.contains("mode = \"socket\""), "{why}");
        let why = chosen(Some(Mode::Signal), None, false).unwrap_err();
        assert!(why.contains("nbd_server_version"), "{why}");
        assert_eq!(chosen(Some(Mode::Socket), package("1:3.24-1.1").as_ref(), false), Ok(Mode::Socket));
    }

    #[test]
    fn a_version_that_dies_of_a_bad_file_is_signalled_only_when_configured_with_a_remark() {
        let chosen = choose(Some(Mode::Signal), package("1:3.26.1-1").as_ref(), false).unwrap();
        assert_eq!(chosen.mode, Mode::Signal);
        assert!(chosen.advice.unwrap().contains("dies"));
    }
}
