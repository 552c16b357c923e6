//! The target in the predecessor's own database, in MariaDB.
//!
//! One connection, opened when there is something to write and closed when nothing is pending for a moment, so an idle
//! daemon has none. A transaction is never cancelled half-way and then continued: a connection that does not answer in time
//! is thrown away, and the server undoes what was not committed. Whether a lost COMMIT was carried out does not matter,
//! because every statement may be repeated ([`statements`]).

mod faults;
mod schema;
mod statements;

use std::path::Path;
use std::time::Duration;

use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlDatabaseError, MySqlSslMode};
use sqlx::{ConnectOptions, Connection, Executor};
use tokio::time::{sleep, timeout};

use super::settings::{DatabaseSettings, DatabaseUrl};
use super::{Rows, Target, TargetError};
use crate::blocking::blocking;
use crate::effect;
use crate::place::secret_file;
use crate::store::Follower;
use faults::{Fault, REPEATS, fault, words};

/// How long connecting may take, with all that is asked first.
const CONNECT: Duration = Duration::from_secs(10);

/// How long a server may take for one transaction. Its own limits are lower, so it answers before that unless it hangs.
const SILENT: Duration = Duration::from_mins(1);

/// How long an orderly close may take.
const CLOSE: Duration = Duration::from_secs(1);

/// The limits that the server is asked to keep: for a lock of another client, and for one statement with its triggers, in
/// seconds. Strictly: what does not fit is refused and never cut.
const SESSION: &str = "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', \
    SESSION lock_wait_timeout = 5, SESSION innodb_lock_wait_timeout = 5, SESSION max_statement_time = 10, \
    SESSION autocommit = 1";

/// The target in MariaDB.
pub struct Mariadb {
    settings: DatabaseSettings,
    port: u16,
    connection: Option<MySqlConnection>,
    /// Whether version, tables and columns were found right since the last failure.
    checked: bool,
}

impl Mariadb {
    /// `port` is the NBD server's.
    pub fn new(settings: DatabaseSettings, port: u16) -> Self {
        Self { settings, port, connection: None, checked: false }
    }

    async fn attempt(&mut self, rows: &[Rows]) -> Result<(), TargetError> {
        let mut repeats = REPEATS.into_iter();
        loop {
            let connection = match &mut self.connection {
                Some(connection) => connection,
                empty => {
                    let opened = opened(&self.settings, &mut self.checked).await;
                    empty.insert(opened.map_err(|why| TargetError::Away(why.to_string()))?)
                }
            };
            let error = match written(connection, rows, self.port).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            match fault(&error) {
                Fault::ConnectAnew => {
                    self.drop_connection();
                    return Err(TargetError::Away(format!("{}: {}", self.settings, words(&error))));
                }
                Fault::Away => return Err(self.away(&error)),
                Fault::Row => return Err(TargetError::Refused(words(&error))),
                Fault::Repeat => match repeats.next() {
                    Some(pause) => sleep(pause).await,
                    None => return Err(self.judged(&error).await),
                },
                Fault::Unclear => return Err(self.judged(&error).await),
            }
        }
    }

    /// Decides whether the rows are at fault, or the tables, which may have been changed or locked.
    async fn judged(&mut self, error: &sqlx::Error) -> TargetError {
        let Some(connection) = &mut self.connection else { return self.away(error) };
        match statements::probe(connection).await {
            Ok(()) => TargetError::Refused(words(error)),
            Err(error) => self.away(&error),
        }
    }

    fn away(&mut self, error: &sqlx::Error) -> TargetError {
        // Whoever mends the tables may have changed them.
        self.drop_connection();
        TargetError::Away(format!("{}: {}", self.settings, words(error)))
    }

    fn drop_connection(&mut self) {
        (self.connection, self.checked) = (None, false);
    }
}

impl Target<Rows> for Mariadb {
    /// The database can be put back from a backup, and its rows can be deleted together with those that they belong to.
    const LOSES_ROWS: bool = true;

    async fn write(&mut self, rows: &[Rows], _: &mut Follower) -> Result<(), TargetError> {
        if let Ok(written) = timeout(SILENT, self.attempt(rows)).await {
            return written;
        }
        self.drop_connection();
        Err(TargetError::Away(format!("{} has not answered for {} s", self.settings, SILENT.as_secs())))
    }

    async fn rest(&mut self) {
        if let Some(connection) = self.connection.take()
            && let Ok(Err(error)) = timeout(CLOSE, connection.close()).await
        {
            tracing::debug!(%error, "a connection to MariaDB did not close");
        }
    }
}

/// Writes all of the rows or none. With no rows it checks whether rows could be written.
async fn written(connection: &mut MySqlConnection, rows: &[Rows], port: u16) -> sqlx::Result<()> {
    if rows.is_empty() {
        return statements::probe(connection).await;
    }
    effect::at_all(&["commit.mariadb"], async {
        connection.execute("BEGIN").await?;
        let all = async {
            for rows in rows {
                statements::show(connection, rows, port).await?;
            }
            connection.execute("COMMIT").await
        };
        let Err(error) = all.await else { return Ok(()) };
        // A connection on which even this fails has ended the transaction itself.
        match fault(&error) {
            Fault::ConnectAnew => Err(error),
            _ => connection.execute("ROLLBACK").await.and(Err(error)),
        }
    })
    .await
}

/// Opens a connection.
async fn opened(settings: &DatabaseSettings, checked: &mut bool) -> Result<MySqlConnection, Unusable> {
    let opened = timeout(CONNECT, async {
        let options = options(settings).await.map_err(Unusable::Wrong)?;
        let refused = |error: sqlx::Error| explained(settings, &error);
        let mut connection = options.connect().await.map_err(refused)?;
        connection.execute(SESSION).await.map_err(refused)?;
        if !*checked {
            let judged = schema::check(&mut connection, &settings.database).await.map_err(refused)?;
            judged.map_err(Unusable::Wrong)?;
            *checked = true;
        }
        Ok(connection)
    });
    let silent = |_| Err(Unusable::Away(format!("{settings} has not answered for {} s", CONNECT.as_secs())));
    opened.await.unwrap_or_else(silent)
}

/// Asks the database whether rows could be written into it. Nothing is changed.
pub async fn check(settings: &DatabaseSettings) -> Result<(), Unusable> {
    let mut connection = opened(settings, &mut false).await?;
    let probed = statements::probe(&mut connection).await;
    let _ = timeout(CLOSE, connection.close()).await;
    probed.map_err(|error| explained(settings, &error))
}

/// Why a database cannot be written, in one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// It does not answer, or has no room at present.
    #[error("{0}")]
    Away(String),
    /// Somebody has to correct something.
    #[error("{0}")]
    Wrong(String),
}

/// The size limit of a file with a password.
const SIZE: u64 = 4096;

/// Reads the password: one line. A file that every user can read is refused. No message repeats the content.
pub fn password(path: &Path) -> Result<String, String> {
    let bytes = secret_file(path, SIZE)?;
    match std::str::from_utf8(bytes.trim_ascii()) {
        Ok("") => Err(format!("{}: it is empty", path.display())),
        Ok(text) if !text.chars().any(char::is_control) => Ok(text.to_owned()),
        _ => Err(format!("{}: it takes one line of text", path.display())),
    }
}

async fn options(settings: &DatabaseSettings) -> Result<MySqlConnectOptions, String> {
    let files = (settings.password_file.clone(), settings.tls_ca.clone());
    let read = blocking(move || {
        let password = files.0.map(|path| password(&path)).transpose()?;
        let ca = files.1.map(|path| std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display())));
        Ok::<_, String>((password, ca.transpose()?))
    });
    let (password, ca) = read.await.map_err(|error| error.to_string())??;
    let mut options = MySqlConnectOptions::new()
        .username(&settings.user)
        .database(&settings.database)
        .pipes_as_concat(false)
        .no_engine_substitution(false)
        .ssl_mode(if settings.is_tls() { MySqlSslMode::VerifyIdentity } else { MySqlSslMode::Disabled })
        .disable_statement_logging();
    options = match &settings.server {
        DatabaseUrl::Socket(path) => options.socket(path),
        DatabaseUrl::Tcp(address, port) => options.host(&address.to_string()).port(*port),
    };
    if let Some(password) = password {
        options = options.password(&password);
    }
    Ok(if let Some(ca) = ca { options.ssl_ca_from_pem(ca) } else { options })
}

/// Says what happened, and what to do about it where that is known.
fn explained(settings: &DatabaseSettings, error: &sqlx::Error) -> Unusable {
    let number = match error {
        sqlx::Error::Database(database) => {
            database.try_downcast_ref::<MySqlDatabaseError>().map(MySqlDatabaseError::number)
        }
        _ => None,
    };
    let told = |cure: &str| format!("{settings} cannot be used: {}{cure}", words(error));
    match number {
        Some(1045 | 1698) => Unusable::Wrong(told("; correct [projection] user and the password in password_file")),
        Some(1049) => Unusable::Wrong(told("; name the right one in [projection] database")),
        Some(1044 | 1142 | 1143 | 1370) => Unusable::Wrong(told("; grant the rights of docs/projection.md")),
        Some(1040 | 1203 | 1226 | 1290) => Unusable::Away(told("; its settings are its administrator's")),
        None if matches!(error, sqlx::Error::Io(_)) => {
            Unusable::Away(told("; does MariaDB run there ([projection] urls)?"))
        }
        _ => Unusable::Wrong(told("")),
    }
}
