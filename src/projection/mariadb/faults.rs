//! What an error of MariaDB means for the rows and for the connection. Pure.

use std::time::Duration;

use sqlx::mysql::MySqlDatabaseError;

/// What to do after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Another client's transaction was in the way: the same again, at once.
    Repeat,
    /// The connection is of no use any more. Whether the last statement was carried out is unknown.
    ConnectAnew,
    /// The server takes no rows at present.
    Away,
    /// A row may be at fault, or the tables: a statement without rows shows which.
    Unclear,
    /// A row is at fault.
    Row,
}

/// How often a transaction is repeated, and the pause before each repetition.
pub(super) const REPEATS: [Duration; 3] =
    [Duration::from_millis(10), Duration::from_millis(40), Duration::from_millis(160)];

/// Decides by MariaDB's number of the error (<https://mariadb.com/kb/en/mariadb-error-code-reference/>).
pub(super) fn fault(error: &sqlx::Error) -> Fault {
    match error {
        sqlx::Error::Database(database) => match database.try_downcast_ref::<MySqlDatabaseError>() {
            Some(error) => by_number(error.number()),
            None => Fault::ConnectAnew,
        },
        // A row that cannot be written as MariaDB's value.
        sqlx::Error::Encode(_) => Fault::Row,
        _ => Fault::ConnectAnew,
    }
}

fn by_number(number: u16) -> Fault {
    match number {
        // A deadlock (Galera's conflict, too), a row that has changed since it was read.
        1213 | 1020 => Fault::Repeat,
        // Galera's node is apart from its cluster; the server ends; the connection was killed; the client is not believed.
        1047 | 1053 | 1077..=1080 | 1152..=1161 | 1184 | 1927 | 1044 | 1045 | 1049 | 1130 | 1129 | 1040 | 1203 => {
            Fault::ConnectAnew
        }
        // A full disk or table, no memory or threads, read-only, a user's limit.
        1004 | 1021 | 1030 | 1037 | 1038 | 1041 | 1114 | 1135 | 1180 | 1181 | 1226 | 1290 | 1792 | 1836 => Fault::Away,
        // A column of others that must have a value.
        1364 => Fault::Row,
        _ => Fault::Unclear,
    }
}

/// Returns the server's words, without sqlx's.
pub(super) fn words(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(database) => match database.try_downcast_ref::<MySqlDatabaseError>() {
            Some(error) => format!("{} (error {})", error.message(), error.number()),
            None => database.to_string(),
        },
        sqlx::Error::Io(error) => error.to_string(),
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_error_has_its_answer() {
        for (numbers, expected) in [
            (&[1213, 1020][..], Fault::Repeat),
            (&[1047, 1053, 1927, 1045, 1040], Fault::ConnectAnew),
            (&[1021, 1114, 1290, 1226], Fault::Away),
            // A lock, a duplicate, a parent that is missing, a text that is too long, a trigger that raises, a missing table.
            (&[1205, 1062, 1452, 1406, 1644, 1146], Fault::Unclear),
            (&[1364], Fault::Row),
        ] {
            for number in numbers {
                assert_eq!(by_number(*number), expected, "{number}");
            }
        }
        assert_eq!(fault(&sqlx::Error::Io(std::io::ErrorKind::BrokenPipe.into())), Fault::ConnectAnew);
        assert_eq!(fault(&sqlx::Error::Protocol("half an answer".into())), Fault::ConnectAnew);
    }
}
