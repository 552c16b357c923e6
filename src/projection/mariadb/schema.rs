//! Whether the database is the predecessor's: its version, tables and columns. Pure, but for the three questions.

use std::collections::BTreeMap;

use sqlx::mysql::MySqlConnection;

/// The oldest MariaDB: Debian 11's.
const OLDEST: (u32, u32) = (10, 5);

/// A column that attachd writes, and what it must be able to hold.
struct Column(&'static str, Holds);

enum Holds {
    /// Texts of this many characters.
    Text(u64),
    /// Texts of this many characters, or nothing.
    TextOrNull(u64),
    /// Whole numbers of eight bytes.
    Number,
    /// Whole numbers of any size, for 0, 1 or nothing.
    Flag,
    /// Points in time.
    Time,
    /// One of these words.
    Words(&'static [&'static str]),
}
use Holds::{Flag, Number, Text, TextOrNull, Time, Words};

/// What attachd writes. A state has at most 32 characters, a path of a disk has 47, a name in its place 93.
const TABLES: [(&str, &[Column]); 4] = [
    (
        "device_mappings",
        &[
            Column("id", Text(36)),
            Column("vm_context_id", TextOrNull(64)),
            Column("volume_uuid", Text(36)),
            Column("vm_id", Text(64)),
            Column("operation_mode", Words(&["oma", "failover"])),
            Column("requires_device_correlation", Flag),
            Column("cloudstack_device_id", Flag),
            Column("device_path", Text(191)),
            Column("cloudstack_state", Text(32)),
            Column("linux_state", Text(32)),
            Column("size", Number),
            Column("last_sync", Time),
            Column("created_at", Time),
            Column("updated_at", Time),
        ],
    ),
    (
        "nbd_exports",
        &[
            Column("vm_context_id", TextOrNull(64)),
            Column("volume_id", Text(36)),
            Column("device_mapping_uuid", TextOrNull(36)),
            Column("export_name", Text(50)),
            Column("port", Flag),
            Column("device_path", Text(191)),
            Column("status", Text(32)),
            Column("created_at", Time),
            Column("updated_at", Time),
        ],
    ),
    (
        "ossea_volumes",
        &[
            Column("vm_context_id", Text(36)),
            Column("volume_id", Text(36)),
            Column("device_path", TextOrNull(96)),
            Column("status", Text(8)),
        ],
    ),
    ("vm_replication_contexts", &[Column("context_id", Text(36))]),
];

/// A column as the server describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    kind: String,
    length: Option<u64>,
    nullable: bool,
    words: String,
}

/// The database as the server describes it.
#[derive(Debug, Clone, Default)]
struct Described {
    version: String,
    /// What the server calls it: `BASE TABLE` or `VIEW`, with its engine.
    tables: BTreeMap<String, (String, String)>,
    columns: BTreeMap<(String, String), Found>,
}

/// Returns in one sentence why the rows cannot be written into this database, if they cannot. Nothing is changed.
pub(super) async fn check(connection: &mut MySqlConnection, database: &str) -> sqlx::Result<Result<(), String>> {
    let described = described(connection).await?;
    Ok(judge(&described).map_err(|why| format!("the database {database:?} is not the predecessor's: {why}")))
}

async fn described(connection: &mut MySqlConnection) -> sqlx::Result<Described> {
    let version = sqlx::query_scalar("SELECT CAST(@@version AS CHAR)").fetch_one(&mut *connection).await?;
    let tables: Vec<(String, String, String)> = sqlx::query_as(
        "SELECT CAST(TABLE_NAME AS CHAR), CAST(TABLE_TYPE AS CHAR), CAST(COALESCE(ENGINE, '') AS CHAR) \
         FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() \
         AND TABLE_NAME IN ('device_mappings', 'nbd_exports', 'ossea_volumes', 'vm_replication_contexts')",
    )
    .fetch_all(&mut *connection)
    .await?;
    let columns: Vec<(String, String, String, Option<i64>, String, String)> = sqlx::query_as(
        "SELECT CAST(TABLE_NAME AS CHAR), CAST(COLUMN_NAME AS CHAR), CAST(DATA_TYPE AS CHAR), \
         CAST(CHARACTER_MAXIMUM_LENGTH AS SIGNED), CAST(IS_NULLABLE AS CHAR), CAST(COLUMN_TYPE AS CHAR) \
         FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = DATABASE() \
         AND TABLE_NAME IN ('device_mappings', 'nbd_exports', 'ossea_volumes', 'vm_replication_contexts')",
    )
    .fetch_all(&mut *connection)
    .await?;
    let columns = columns.into_iter().map(|(table, name, kind, length, nullable, words)| {
        let length = length.and_then(|length| length.try_into().ok());
        ((table, name), Found { kind, length, nullable: nullable == "YES", words })
    });
    let tables = tables.into_iter().map(|(name, kind, engine)| (name, (kind, engine)));
    Ok(Described { version, tables: tables.collect(), columns: columns.collect() })
}

fn judge(described: &Described) -> Result<(), String> {
    let version = &described.version;
    let mut numbers = version.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let number = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    if !version.contains("MariaDB") || number < OLDEST {
        return Err(format!("the server is {version}; MariaDB {}.{} or newer is needed", OLDEST.0, OLDEST.1));
    }
    for (table, columns) in &TABLES {
        match described.tables.get(*table) {
            None => {
                return Err(format!(
                    "it has no table {table} that this user can see; name the right one in [projection] database, or grant the \
                     rights of docs/projection.md"
                ));
            }
            Some((kind, _)) if kind != "BASE TABLE" => {
                return Err(format!("{table} is a {}, and has to be a table", kind.to_lowercase()));
            }
            Some((_, engine)) if engine != "InnoDB" => {
                return Err(format!(
                    "the table {table} has the engine {engine:?}, which keeps no transaction; it has to be InnoDB"
                ));
            }
            Some(_) => {}
        }
        for Column(name, holds) in *columns {
            let found = described.columns.get(&((*table).to_owned(), (*name).to_owned()));
            let found = found.ok_or_else(|| {
                format!("the table {table} has no column {name} that this user can see; see docs/projection.md")
            })?;
            if let Some(needed) = misfit(found, holds) {
                return Err(format!("the column {table}.{name} is {}, and has to be {needed}", found.words));
            }
        }
    }
    Ok(())
}

/// Returns what the column has to be, if it cannot hold what attachd writes.
fn misfit(found: &Found, holds: &Holds) -> Option<String> {
    let is_text = |length: u64| {
        ["varchar", "char", "text", "mediumtext", "longtext"].contains(&&*found.kind)
            && found.length.is_some_and(|has| has >= length)
    };
    match holds {
        Text(length) => (!is_text(*length)).then(|| format!("a text of at least {length} characters")),
        TextOrNull(length) => (!is_text(*length) || !found.nullable)
            .then(|| format!("a text of at least {length} characters that may be NULL")),
        Number => (found.kind != "bigint").then(|| "a bigint".to_owned()),
        Flag => (!["tinyint", "smallint", "mediumint", "int", "bigint"].contains(&&*found.kind))
            .then(|| "a whole number".to_owned()),
        Time => (!["timestamp", "datetime"].contains(&&*found.kind)).then(|| "a timestamp or datetime".to_owned()),
        Words(words) => {
            let longest = words.iter().map(|word| word.len() as u64).max().unwrap_or_default();
            let has_all = words.iter().all(|word| found.words.contains(&format!("'{word}'")));
            let fits = is_text(longest) || (found.kind == "enum" && has_all);
            (!fits).then(|| format!("an enum with {}", words.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn production() -> Described {
        let mut described = Described { version: "10.11.6-MariaDB-0+deb12u1".to_owned(), ..Default::default() };
        for (table, columns) in &TABLES {
            described.tables.insert((*table).to_owned(), ("BASE TABLE".to_owned(), "InnoDB".to_owned()));
            for Column(name, holds) in *columns {
                let (kind, length) = match holds {
                    Text(_) | TextOrNull(_) => ("varchar", Some(255)),
                    Number | Flag => ("bigint", None),
                    Time => ("timestamp", None),
                    Words(_) => ("enum", Some(8)),
                };
                let words = if kind == "enum" { "enum('oma','failover')" } else { kind };
                let found = Found { kind: kind.to_owned(), length, nullable: true, words: words.to_owned() };
                described.columns.insert(((*table).to_owned(), (*name).to_owned()), found);
            }
        }
        described
    }

    fn told(change: impl FnOnce(&mut Described)) -> String {
        let mut described = production();
        change(&mut described);
        judge(&described).expect_err("it is refused")
    }

    #[test]
    fn what_does_not_fit_is_named_with_what_it_has_to_be() {
        assert_eq!(judge(&production()), Ok(()), "the control");
        let column = |described: &mut Described, name: &str, change: fn(&mut Found)| {
            change(described.columns.get_mut(&("device_mappings".to_owned(), name.to_owned())).unwrap());
        };
        for (told, why) in [
            (told(|it| it.version = "10.3.39-MariaDB".to_owned()), "10.3.39-MariaDB; MariaDB 10.5 or newer"),
            (told(|it| it.version = "8.0.36".to_owned()), "the server is 8.0.36"),
            (told(|it| drop(it.tables.remove("nbd_exports"))), "no table nbd_exports"),
            (
                told(|it| it.tables.get_mut("nbd_exports").unwrap().0 = "VIEW".to_owned()),
                "nbd_exports is a view, and has to be a table",
            ),
            (told(|it| it.tables.get_mut("ossea_volumes").unwrap().1 = "MyISAM".to_owned()), "MyISAM"),
            (
                told(|it| drop(it.columns.remove(&("nbd_exports".to_owned(), "status".to_owned())))),
                "nbd_exports has no column status",
            ),
            (told(|it| column(it, "device_path", |found| found.length = Some(40))), "at least 191 characters"),
            (told(|it| column(it, "size", |found| found.kind = "int".to_owned())), "has to be a bigint"),
            (told(|it| column(it, "vm_context_id", |found| found.nullable = false)), "may be NULL"),
            (told(|it| column(it, "operation_mode", |found| found.words = "enum('oma')".to_owned())), "oma, failover"),
        ] {
            assert!(told.contains(why), "{told}");
        }
    }
}
