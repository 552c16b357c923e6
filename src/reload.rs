//! Reloads the configuration: reads the file again, applies what can take effect at once, and names what needs a
//! restart. A configuration with a mistake changes nothing. Journal and health report the result.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

use crate::blocking::blocking;
use crate::cloud::Access;
use crate::config::{self, Changes, ConfigMistake, Invalid, Settings};
use crate::engine::{Handle, Stopping};
use crate::export::tls::Tls;
use crate::store::Store;

/// The configuration in use, and how it differs from the file.
#[derive(Clone)]
pub struct InUse {
    /// The settings in use.
    pub settings: Settings,
    /// The keys with another value in the file, which take effect when attachd is restarted.
    pub at_restart: Vec<&'static str>,
    /// Why the file could not be applied at the last reload, if so.
    pub invalid: Option<Invalid>,
}

/// What a reload needs.
pub(crate) struct Reload {
    path: PathBuf,
    in_use: watch::Sender<Arc<InUse>>,
    engine: Handle,
    store: Store,
    tls: Tls,
    cloud: Option<Access>,
}

impl Reload {
    pub(crate) fn new(
        path: &Path,
        settings: Settings,
        engine: Handle,
        store: Store,
        tls: Tls,
        cloud: Option<Access>,
    ) -> Self {
        let in_use = InUse { settings, at_restart: Vec::new(), invalid: None };
        Self { path: path.to_owned(), in_use: watch::Sender::new(Arc::new(in_use)), engine, store, tls, cloud }
    }

    /// Returns a receiver for the configuration in use, now and after each reload.
    pub(crate) fn in_use(&self) -> watch::Receiver<Arc<InUse>> {
        self.in_use.subscribe()
    }

    /// Reads the configuration and all disks again.
    pub(crate) async fn carry_out(&self) -> Result<(), Stopping> {
        match self.read().await {
            Ok(new) => self.take_over(new).await?,
            Err(invalid) => {
                tracing::error!("the configuration is not valid, the one in use stays:\n{invalid}");
                self.in_use.send_modify(|in_use| Arc::make_mut(in_use).invalid = Some(invalid));
            }
        }
        if let Err(why) = self.engine.resync("reload", None).await? {
            tracing::error!("the resync failed: {why}");
        }
        Ok(())
    }

    /// Checks the file as `check-config` does, and reads the TLS files again.
    async fn read(&self) -> Result<Settings, Invalid> {
        let (path, tls) = (self.path.clone(), self.tls.clone());
        let read = blocking(move || {
            let new = config::check(&path)?;
            let whole = |message: String| Invalid { path, problems: vec![ConfigMistake { place: None, message }] };
            tls.change(new.export.tls.clone()).map_err(|error| whole(error.to_string()))?;
            Ok(new)
        });
        let failed = |error: std::io::Error| {
            let message = format!("cannot be read: {error}");
            Err(Invalid { path: self.path.clone(), problems: vec![ConfigMistake { place: None, message }] })
        };
        read.await.unwrap_or_else(failed)
    }

    async fn take_over(&self, new: Settings) -> Result<(), Stopping> {
        let old = Arc::clone(&self.in_use.borrow());
        let Changes { at_once, at_restart } = Changes::between(&old.settings, &new);
        let settings = old.settings.reloaded(&new);
        self.engine.take_over(settings.host.vm_id.clone(), settings.limits).await?;
        if let (Some(access), Some(cloudstack)) = (&self.cloud, &settings.cloudstack)
            && (settings.cloudstack != old.settings.cloudstack || settings.host != old.settings.host)
        {
            access.change(cloudstack.clone(), &settings.host.vm_id);
        }
        self.store.keep_history_for(settings.history.days);
        if !at_once.is_empty() {
            tracing::info!("the configuration is read again; changed: {}", at_once.join(", "));
        } else if at_restart.is_empty() {
            tracing::info!("the configuration is read again; nothing in it has changed");
        }
        if !at_restart.is_empty() {
            tracing::warn!(
                "the configuration is read again; not changed, because that takes a restart of attachd (exports stay \
                 served): {}",
                at_restart.join(", ")
            );
        }
        self.in_use.send_replace(Arc::new(InUse { settings, at_restart, invalid: None }));
        Ok(())
    }
}
