//! Statements that go to SQLite's thread together. A statement that goes alone costs two switches between threads,
//! which is most of what a small statement costs.

use sqlx::encode::Encode;
use sqlx::error::BoxDynError;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteConnection};
use sqlx::{Arguments, AssertSqlSafe, SqlSafeStr, SqlStr, Type};

/// The number of statements sent at once. sqlx finds prepared statements by their text, so the number is a multiple
/// of what repeats when much is written: one, two or three statements per volume.
const AT_ONCE: usize = 24;

/// Returns the text by which sqlx knows a statement that ran alone.
pub(super) fn alone(sql: &'static str) -> SqlStr {
    AssertSqlSafe(format!("{sql};")).into_sql_str()
}

/// Collects statements, in order. A batch of more than one statement belongs into a transaction, because it can fail
/// half-way.
#[derive(Default)]
pub(crate) struct Batch {
    parts: Vec<Part>,
}

#[derive(Default)]
struct Part {
    sql: String,
    values: SqliteArguments,
    statements: usize,
    failed: Option<BoxDynError>,
}

impl Batch {
    /// Adds a statement. Its parameters are written `?`, because numbered ones would count from the first
    /// statement's. Its values follow by [`Values::bind`], in order.
    pub(crate) fn add(&mut self, sql: &'static str) -> Values<'_> {
        if self.parts.last().is_none_or(|part| part.statements == AT_ONCE) {
            self.parts.push(Part::default());
        }
        let last = self.parts.len() - 1;
        let part = &mut self.parts[last];
        part.statements += 1;
        part.sql.push_str(sql);
        part.sql.push(';');
        Values(part)
    }

    /// Runs the statements.
    pub(crate) async fn run(self, connection: &mut SqliteConnection) -> sqlx::Result<()> {
        for part in self.parts {
            if let Some(error) = part.failed {
                return Err(sqlx::Error::Encode(error));
            }
            // The parameter's type in `add` ensures that these are texts of this program only.
            sqlx::query_with(AssertSqlSafe(part.sql), part.values).execute(&mut *connection).await?;
        }
        Ok(())
    }
}

/// The values of one statement.
pub(crate) struct Values<'a>(&'a mut Part);

impl Values<'_> {
    /// Binds the next value.
    pub(crate) fn bind<'t>(self, value: impl Encode<'t, Sqlite> + Type<Sqlite>) -> Self {
        if let Err(error) = self.0.values.add(value) {
            self.0.failed = Some(error);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sqlx::{Connection, Row};

    async fn numbers(connection: &mut SqliteConnection) -> Vec<i64> {
        let rows = sqlx::query("SELECT n FROM numbers ORDER BY rowid").fetch_all(connection).await.unwrap();
        rows.iter().map(|row| row.get("n")).collect()
    }

    async fn table() -> SqliteConnection {
        let mut connection = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        sqlx::query("CREATE TABLE numbers (n INTEGER UNIQUE)").execute(&mut connection).await.unwrap();
        connection
    }

    #[tokio::test]
    async fn every_statement_runs_in_order_with_its_own_values() {
        let mut connection = table().await;
        let count = i64::try_from(AT_ONCE).unwrap() * 3 + 1;
        let mut batch = Batch::default();
        for n in 0..count {
            batch.add("INSERT INTO numbers VALUES (?)").bind(n);
            batch.add("UPDATE numbers SET n = n + ? WHERE n = ?").bind(1000).bind(n);
        }
        batch.run(&mut connection).await.unwrap();
        assert_eq!(numbers(&mut connection).await, (1000..1000 + count).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn no_statement_runs_after_one_that_failed() {
        let mut connection = table().await;
        let mut batch = Batch::default();
        for n in [1, 2, 2, 3] {
            batch.add("INSERT INTO numbers VALUES (?)").bind(n);
        }
        assert!(batch.run(&mut connection).await.is_err());
        assert_eq!(numbers(&mut connection).await, [1, 2]);
    }

    #[tokio::test]
    async fn an_empty_batch_does_nothing() {
        Batch::default().run(&mut table().await).await.unwrap();
    }
}
