//! Catalog changes made by others: verbs still do what plain SQL would.

mod as_made;
mod ddl;
mod owners;
mod random_ddl;
mod same_as_sql;
