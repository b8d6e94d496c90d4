-- First start of the database: an owner that migrates, an app role without DDL, a reader of counts.
-- Passwords come from the mounted secrets, never from a variable of the environment.
\set owner_password `cat /run/secrets/postgres/owner`
\set app_password `cat /run/secrets/postgres/app`
\set reader_password `cat /run/secrets/postgres/reader`
CREATE ROLE rldp_owner LOGIN PASSWORD :'owner_password';
CREATE ROLE rldp_app LOGIN PASSWORD :'app_password';
CREATE ROLE rldp_reader LOGIN PASSWORD :'reader_password';
ALTER DATABASE rldp OWNER TO rldp_owner;
\connect rldp
ALTER SCHEMA public OWNER TO rldp_owner;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
