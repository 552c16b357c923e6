//! What is on record.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::super::super::tools::Records;
use super::Double;
use crate::identity::OperationId;
use crate::operation::{IdempotencyKey, Operation};
use crate::store::{Change, OperationFilter, StoreError};

impl Records for Double {
    fn write(&self, changes: Vec<Change>) -> BoxFuture<'_, Result<(), StoreError>> {
        let written = async move {
            self.0.point("before", "record").await;
            self.0.state().write(changes);
            self.0.point("after", "record").await;
            Ok(())
        };
        written.boxed()
    }

    fn operation(&self, id: OperationId) -> BoxFuture<'_, Result<Option<Operation>, StoreError>> {
        async move { Ok(self.0.state().operations.get(&id).cloned()) }.boxed()
    }

    fn keyed(&self, uid: Option<u32>, key: IdempotencyKey) -> BoxFuture<'_, Result<Option<Operation>, StoreError>> {
        let keyed = async move {
            let state = self.0.state();
            let mut all = state.operations.values();
            Ok(all.find(|it| it.uid == uid && it.key.as_ref() == Some(&key)).cloned())
        };
        keyed.boxed()
    }

    fn list(&self, _: OperationFilter) -> BoxFuture<'_, Result<Vec<Operation>, StoreError>> {
        async move { Ok(self.0.state().operations.values().cloned().collect()) }.boxed()
    }
}
