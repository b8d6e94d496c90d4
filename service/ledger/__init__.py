"""The privacy ledger: accounts, hash-chained entries, grants, releases, evidence."""
