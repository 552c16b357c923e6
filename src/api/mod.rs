//! HTTP/1.1 with JSON on a Unix socket: the door for automation and for `attachctl`.
//!
//! Handlers only ask: the engine for what is now, the store for what was. [`serve`] bounds what a client may take.

mod body;
mod checked;
mod devices;
mod error;
mod events;
mod exports;
mod health;
mod intents;
mod metrics;
mod serve;
mod volumes;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::routing::get;
use jiff::Timestamp;
use tokio::sync::Semaphore;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::config::Settings;
use crate::device::monitor;
use crate::engine::Handle;
use crate::export::backend::Backend;
use crate::export::probe::Endpoint;
use crate::store::Store;
use error::ApiError;
pub use serve::{Listener, serve};

/// Requests that stay open (events, `?wait=`) at one time.
const LONG_REQUESTS: usize = 128;

/// What the handlers work with.
#[derive(Clone)]
pub struct Context {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Handle,
    store: Store,
    settings: Settings,
    monitor: Arc<monitor::Stats>,
    backend: Arc<dyn Backend>,
    server: Endpoint,
    started: Timestamp,
    long_requests: Arc<Semaphore>,
}

impl Context {
    /// For the router.
    pub fn new(
        engine: Handle,
        store: Store,
        settings: Settings,
        monitor: Arc<monitor::Stats>,
        backend: Arc<dyn Backend>,
        server: Endpoint,
    ) -> Self {
        let long_requests = Arc::new(Semaphore::new(LONG_REQUESTS));
        let started = Timestamp::now();
        let inner = Inner { engine, store, settings, monitor, backend, server, started, long_requests };
        Self { inner: Arc::new(inner) }
    }
}

#[derive(OpenApi)]
#[openapi(info(
    title = "attachd",
    description = "From a volume's announcement to its NBD export. Errors are {error, code, details}."
))]
struct Document;

/// Every route, with its document.
pub fn router(context: Context) -> axum::Router {
    let (router, document) = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(intents::list, intents::add))
        .routes(routes!(intents::show, intents::withdraw))
        .routes(routes!(volumes::list))
        .routes(routes!(volumes::show))
        .routes(routes!(devices::list))
        .routes(routes!(exports::list))
        .routes(routes!(devices::resync))
        .routes(routes!(events::follow))
        .routes(routes!(health::show))
        .routes(routes!(metrics::show))
        .split_for_parts();
    let document = Arc::new(document);
    router
        .route("/api/v1/openapi.json", get(move || async move { Json(utoipa::openapi::OpenApi::clone(&document)) }))
        .fallback(|uri: axum::http::Uri| async move { ApiError::no_such_route(uri.path()) })
        .method_not_allowed_fallback(|method: axum::http::Method, uri: axum::http::Uri| async move {
            ApiError::method_not_allowed(&method, uri.path())
        })
        .with_state(context)
}

/// What most handlers take.
type Ctx = State<Context>;
