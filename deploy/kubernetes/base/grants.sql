-- What the service may do, as the schema's owner says after each migration. Safe to repeat.
-- Run by rldp_owner: psql -v app=rldp_app -v reader=rldp_reader -f grants.sql
-- The app role has no DDL, so it can neither drop nor disable the triggers that keep the ledger
-- append-only, and of append-only tables it has no UPDATE and no DELETE to begin with.
GRANT USAGE ON SCHEMA public TO :"app", :"reader";
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO :"app";
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO :"app";
REVOKE UPDATE, DELETE ON entry, posting, approval, window_settings, tile, checkpoint, anchor
  FROM :"app";
REVOKE INSERT, UPDATE, DELETE ON alembic_version FROM :"app";
-- Queue depth for the autoscaler: states and leases of jobs; no person, no label, no plan.
GRANT SELECT (id, state, lease_expires_at) ON job TO :"reader";
-- Rows of a job belong to a hospital (row-level security); the counts are of all of them.
DROP POLICY IF EXISTS reader_counts ON job;
CREATE POLICY reader_counts ON job FOR SELECT TO :"reader" USING (true);
