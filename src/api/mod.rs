//! The API for automation and for `attachctl`: HTTP/1.1 with JSON on a Unix socket, and over TCP if that is wanted.
//!
//! Handlers only ask: the engine for the present, the store for the past. [`serve`], [`middleware`] and
//! [`connection`] limit what one client can use, [`shares`] what one user can use.

mod body;
mod checked;
mod cloud;
mod connection;
mod devices;
mod document;
mod error;
mod events;
mod exports;
mod health;
mod intents;
#[cfg(feature = "kill-points")]
mod kill_points;
mod legacy;
mod listeners;
mod metrics;
mod middleware;
mod operations;
mod pages;
mod pieces;
mod refusing;
mod serve;
mod shares;
mod tcp;
mod volumes;

use std::sync::Arc;

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
use crate::cloud::Access;
use crate::device::monitor;
use crate::engine::Handle;
use crate::export::backend::Backend;
use crate::export::probe::Endpoint;
use crate::operations::Operations;
use crate::reload::InUse;
use crate::store::Store;
use error::ApiError;
pub use listeners::{Listeners, Shown};
pub use serve::serve;
use shares::Slots;

/// The limit of requests in progress that change something.
const CHANGES: usize = 256;

/// The limit of lists that are being made or sent.
const LISTS: usize = 8;

/// What the handlers need.
#[derive(Clone)]
pub struct Context {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Handle,
    operations: Operations,
    store: Store,
    cloud: Option<Access>,
    in_use: watch::Receiver<Arc<InUse>>,
    monitor: Arc<monitor::Stats>,
    backend: Arc<dyn Backend>,
    checks: checked::Checks,
    listeners: Shown,
    started: Timestamp,
    long_requests: Slots,
    changes: Slots,
    lists: Slots,
}

/// The parts of the daemon that handlers ask.
pub struct Parts<'a> {
    /// The present.
    pub engine: Handle,
    /// Operations, open and ended.
    pub operations: Operations,
    /// The past.
    pub store: Store,
    /// CloudStack, if it is configured.
    pub cloud: Option<Access>,
    /// The configuration.
    pub in_use: watch::Receiver<Arc<InUse>>,
    /// What the monitor has counted.
    pub monitor: Arc<monitor::Stats>,
    /// The exports.
    pub backend: Arc<dyn Backend>,
    /// The NBD server.
    pub server: &'a Endpoint,
    /// Where the API is served.
    pub listeners: Shown,
}

impl Context {
    /// Makes the context for the router.
    pub fn new(parts: Parts<'_>) -> Self {
        let Parts { engine, operations, store, cloud, in_use, monitor, backend, server, listeners } = parts;
        let inner = Inner {
            engine,
            operations,
            store,
            cloud,
            in_use,
            monitor,
            backend,
            checks: checked::Checks::of(server),
            listeners,
            started: clock::wall(),
            long_requests: Slots::new(budget::clients().watched),
            changes: Slots::new(CHANGES),
            lists: Slots::new(LISTS),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Returns the configuration that is in use now.
    fn in_use(&self) -> Arc<InUse> {
        Arc::clone(&self.inner.in_use.borrow())
    }
}

/// Returns the router with every route and the OpenAPI document.
pub fn router(context: Context) -> axum::Router {
    // The document comes with the routes. It takes one and a half megabytes, so it is made again for whoever asks for it.
    let (router, _) = routes(&context).split_for_parts();
    let documented = context.clone();
    let document = move || document::written(move || routes(&documented).into_openapi());
    #[cfg(feature = "kill-points")]
    let router = kill_points::add(router);
    router
        .route("/api/v1/openapi.json", get(document))
        .fallback(|uri: axum::http::Uri| async move { ApiError::no_such_route(uri.path()) })
        .method_not_allowed_fallback(|method: axum::http::Method, uri: axum::http::Uri| async move {
            ApiError::method_not_allowed(&method, uri.path())
        })
        .layer(from_fn(middleware::read_body))
        .layer(from_fn(tcp::admit))
        .with_state(context)
}

/// Returns every route that the OpenAPI document shows, and the document.
fn routes(context: &Context) -> OpenApiRouter<Context> {
    let lists = OpenApiRouter::new()
        .routes(routes!(intents::list, intents::add))
        .routes(routes!(volumes::list))
        .routes(routes!(operations::list, operations::begin))
        .routes(routes!(devices::list))
        .routes(routes!(exports::list))
        .layer(from_fn_with_state(context.clone(), middleware::list));
    OpenApiRouter::with_openapi(document::Base::openapi())
        .merge(lists)
        .merge(legacy::routes(context))
        .routes(routes!(intents::show, intents::withdraw))
        .routes(routes!(volumes::show))
        .routes(routes!(operations::show, operations::cancel))
        .routes(routes!(devices::resync))
        .routes(routes!(events::follow))
        .routes(routes!(health::show))
        .routes(routes!(metrics::show))
        .layer(from_fn_with_state(context.clone(), middleware::change))
}

/// Waits for an answer that waits for the store; stops waiting if the store hangs. The request is still carried out.
async fn unless_silent<T>(context: &Context, asked: impl Future<Output = T>) -> Result<T, ApiError> {
    tokio::select! {
        biased;
        answer = asked => Ok(answer),
        silent = context.inner.store.silence() => Err(ApiError::undecided(&silent)),
    }
}

/// The state that most handlers take.
type Ctx = State<Context>;
