//! What a [`Follower`] of operations reads and settles. Which operations have changed is noted in a table of their own
//! (`migrations/0006_shown.sql`); an operation that is set aside stays in it, marked.

use sqlx::sqlite::SqliteConnection;

use super::batch::Batch;
use super::{Follower, StoreError, operations};
use crate::identity::OperationId;
use crate::operation::Operation;

/// A change's number, its operation, and what is on record of it. `None`: it was deleted. An error: the row holds a value
/// that attachd did not write.
pub(crate) type ChangedOperation = (i64, OperationId, Result<Option<Operation>, String>);

impl Follower {
    /// Returns some of the owed operations, in order.
    pub(crate) async fn next_operations(&mut self, limit: i64) -> Result<Vec<ChangedOperation>, StoreError> {
        let rows = self.read(async |connection| operations::changed(connection, limit).await).await?;
        let known = rows.into_iter().filter_map(|(number, id, present)| {
            // The triggers note only ids of operations.
            Some((number, id.parse().ok()?, present.map_err(|error| error.to_string())))
        });
        Ok(known.collect())
    }

    /// Records that everything up to `number` is shown, except for the operations in `refused`, which are set aside.
    pub(crate) async fn settle_operations(&mut self, number: i64, refused: &[OperationId]) -> Result<(), StoreError> {
        self.write(async |connection: &mut SqliteConnection| {
            let mut batch = Batch::default();
            for operation in refused {
                batch
                    .add("UPDATE changed_operations SET refused = 1 WHERE operation_id = ? AND seq <= ?")
                    .bind(operation.to_string())
                    .bind(number);
            }
            batch.add("DELETE FROM changed_operations WHERE seq <= ? AND NOT refused").bind(number);
            batch.run(connection).await
        })
        .await
    }

    /// Makes the operations that are set aside owed again.
    pub(crate) async fn try_operations_again(&mut self) -> Result<(), StoreError> {
        let any = self.read(async |connection| operations::any_set_aside(connection).await).await?;
        if !any {
            return Ok(());
        }
        self.write(async |connection: &mut SqliteConnection| {
            sqlx::query("UPDATE changed_operations SET refused = 0 WHERE refused = 1")
                .execute(connection)
                .await
                .map(drop)
        })
        .await
    }
}
