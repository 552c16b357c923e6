//! HTTP/1.1 with JSON on a Unix socket: the door for automation and for `attachctl`.
//!
//! Handlers only ask: the engine for what is now, the store for what was. [`serve`], [`front`] and [`line`] bound what a
//! client may take, [`shares`] what a user may.

mod body;
mod checked;
mod devices;
mod document;
#[cfg(feature = "kill-points")]
mod door;
mod error;
mod events;
mod exports;
mod front;
mod health;
mod intents;
mod line;
mod metrics;
mod pages;
mod serve;
mod shares;
mod volumes;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;
use jiff::Timestamp;
use tokio::sync::watch;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::budget;
use crate::clock;
use crate::device::monitor;
use crate::engine::Handle;
use crate::export::backend::Backend;
use crate::export::probe::Endpoint;
use crate::reload::InUse;
use crate::store::Store;
use error::ApiError;
pub use serve::{Listener, serve};
use shares::Places;

/// Requests under way that change something.
const CHANGES: usize = 256;

/// Lists that are made or on their way to their client.
const LISTS: usize = 8;

/// What the handlers work with.
#[derive(Clone)]
pub struct Context {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Handle,
    store: Store,
    in_use: watch::Receiver<Arc<InUse>>,
    monitor: Arc<monitor::Stats>,
    backend: Arc<dyn Backend>,
    checks: checked::Checks,
    started: Timestamp,
    long_requests: Places,
    changes: Places,
    lists: Places,
}

impl Context {
    /// For the router.
    pub fn new(
        engine: Handle,
        store: Store,
        in_use: watch::Receiver<Arc<InUse>>,
        monitor: Arc<monitor::Stats>,
        backend: Arc<dyn Backend>,
        server: &Endpoint,
    ) -> Self {
        let inner = Inner {
            engine,
            store,
            in_use,
            monitor,
            backend,
            checks: checked::Checks::of(server),
            started: clock::wall(),
            long_requests: Places::new(budget::clients().watched),
            changes: Places::new(CHANGES),
            lists: Places::new(LISTS),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The configuration as it is in use now.
    fn in_use(&self) -> Arc<InUse> {
        Arc::clone(&self.inner.in_use.borrow())
    }
}

/// Every route, with its document.
pub fn router(context: Context) -> axum::Router {
    let lists = OpenApiRouter::new()
        .routes(routes!(intents::list, intents::add))
        .routes(routes!(volumes::list))
        .routes(routes!(devices::list))
        .routes(routes!(exports::list))
        .layer(from_fn_with_state(context.clone(), front::list));
    let (router, document) = OpenApiRouter::with_openapi(document::Base::openapi())
        .merge(lists)
        .routes(routes!(intents::show, intents::withdraw))
        .routes(routes!(volumes::show))
        .routes(routes!(devices::resync))
        .routes(routes!(events::follow))
        .routes(routes!(health::show))
        .routes(routes!(metrics::show))
        .layer(from_fn_with_state(context.clone(), front::change))
        .split_for_parts();
    #[cfg(feature = "kill-points")]
    let router = door::open(router);
    let document = Arc::new(document::complete(document));
    router
        .route("/api/v1/openapi.json", get(move || async move { Json(utoipa::openapi::OpenApi::clone(&document)) }))
        .fallback(|uri: axum::http::Uri| async move { ApiError::no_such_route(uri.path()) })
        .method_not_allowed_fallback(|method: axum::http::Method, uri: axum::http::Uri| async move {
            ApiError::method_not_allowed(&method, uri.path())
        })
        .layer(from_fn(front::take_in))
        .with_state(context)
}

/// What most handlers take.
type Ctx = State<Context>;
