"""First tables: every table of this release, and triggers that keep the ledger append-only.

Revision: 0001.
"""

# ruff: noqa: E501

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

APPEND_ONLY = ("entry", "posting", "window_settings", "approval")


def upgrade() -> None:
    _tables()
    if op.get_bind().dialect.name == "sqlite":
        _sqlite_triggers()
    else:
        _postgresql_triggers()


def downgrade() -> None:
    raise RuntimeError("A ledger has no way back; restore a backup instead.")


def _sqlite_triggers() -> None:
    for table in APPEND_ONLY:
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )


def _postgresql_triggers() -> None:
    op.execute(
        "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
    )
    for table in APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION refuse_change()"
        )
        op.execute(
            f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )


def _tables() -> None:
    _tenant()
    _window_settings()
    _certificate()
    _log_head()
    _natural_key()
    _principal()
    _api_key()
    _population()
    _account()
    _budget_grant()
    _dataset()
    _entry()
    _job()
    _reservation()
    _approval()
    _artifact()
    _attempt()
    _file()
    _job_checkpoint()
    _job_event()
    _job_metric()
    _outbox()
    _posting()
    _release_request()
    _reservation_block()
    _spend_tally()
    _dataset_version()
    _file_error()


# fmt: off
def _tenant() -> None:
    op.create_table('tenant',
        sa.Column('id', sa.String(length=40), nullable=False),
        sa.Column('created_at', sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint('id', name=op.f('pk_tenant'))
    )


def _window_settings() -> None:
    op.create_table('window_settings',
        sa.Column('digest', sa.String(length=64), nullable=False),
        sa.Column('body', sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint('digest', name=op.f('pk_window_settings'))
    )


def _certificate() -> None:
    op.create_table('certificate',
        sa.Column('job_id', sa.String(length=40), nullable=False),
        sa.Column('tenant_id', sa.String(length=40), nullable=False),
        sa.Column('digest', sa.String(length=64), nullable=False),
        sa.Column('body', sa.Text(), nullable=False),
        sa.Column('verdict', sa.String(length=16), nullable=False),
        sa.Column('created_at', sa.BigInteger(), nullable=False),
        sa.CheckConstraint("verdict IN ('full', 'conditional', 'none')", name=op.f('ck_certificate_verdict')),
        sa.ForeignKeyConstraint(['tenant_id'], ['tenant.id'], name=op.f('fk_certificate_tenant_id')),
        sa.PrimaryKeyConstraint('job_id', name=op.f('pk_certificate'))
    )
    op.create_index(op.f('ix_certificate_tenant_id'), 'certificate', ['tenant_id'], unique=False)


def _log_head() -> None:
    op.create_table('log_head',
        sa.Column('log_id', sa.String(length=64), nullable=False),
        sa.Column('tenant_id', sa.String(length=40), nullable=False),
        sa.Column('origin', sa.String(length=128), nullable=False),
        sa.Column('size', sa.BigInteger(), nullable=False),
        sa.Column('last_leaf', sa.String(length=64), nullable=False),
        sa.Column('last_ts', sa.String(length=17), nullable=False),
        sa.Column('frontier', sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(['tenant_id'], ['tenant.id'], name=op.f('fk_log_head_tenant_id')),
        sa.PrimaryKeyConstraint('log_id', name=op.f('pk_log_head')),
        sa.UniqueConstraint('origin', name=op.f('uq_log_head_origin'))
    )
    op.create_index(op.f('ix_log_head_tenant_id'), 'log_head', ['tenant_id'], unique=False)


def _natural_key() -> None:
    op.create_table('natural_key',
        sa.Column('tenant_id', sa.String(length=40), nullable=False),
        sa.Column('key', sa.String(length=64), nullable=False),
        sa.Column('job_id', sa.String(length=40), nullable=False),
        sa.Column('created_at', sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(['tenant_id'], ['tenant.id'], name=op.f('fk_natural_key_tenant_id')),
        sa.PrimaryKeyConstraint('tenant_id', 'key', name=op.f('pk_natural_key'))
    )
    op.create_index(op.f('ix_natural_key_job_id'), 'natural_key', ['job_id'], unique=False)


def _principal() -> None:
    op.create_table('principal',
        sa.Column('id', sa.String(length=40), nullable=False),
        sa.Column('tenant_id', sa.String(length=40), nullable=False),
        sa.Column('role', sa.String(length=16), nullable=False),
        sa.Column('public_key', sa.String(length=64), nullable=True),
        sa.Column('created_at', sa.BigInteger(), nullable=False),
        sa.CheckConstraint("public_key IS NULL OR role = 'steward'", name=op.f('ck_principal_key_only_for_stewards')),
        sa.CheckConstraint("role IN ('submitter', 'steward', 'auditor', 'admin')", name=op.f('ck_principal_role')),
        sa.ForeignKeyConstraint(['tenant_id'], ['tenant.id'], name=op.f('fk_principal_tenant_id')),
        sa.PrimaryKeyConstraint('id', name=op.f('pk_principal'))
    )
    op.create_index(op.f('ix_principal_tenant_id'), 'principal', ['tenant_id'], unique=False)
    op.create_index('uq_principal_public_key', 'principal', ['public_key'], unique=True)


def _api_key() -> None:
    op.create_table('api_key',
        sa.Column('id', sa.String(length=40), nullable=False),
        sa.Column('principal_id', sa.String(length=40), nullable=False),
        sa.Column('sha256', sa.String(length=64), nullable=False),
        sa.Column('prefix', sa.String(length=16), nullable=False),
        sa.Column('created_at', sa.BigInteger(), nullable=False),
        sa.Column('expires_at', sa.BigInteger(), nullable=False),
        sa.Column('last_used_at', sa.BigInteger(), nullable=True),
        sa.Column('revoked_at', sa.BigInteger(), nullable=True),
        sa.CheckConstraint('expires_at > created_at', name=op.f('ck_api_key_expires_at')),
        sa.ForeignKeyConstraint(['principal_id'], ['principal.id'], name=op.f('fk_api_key_principal_id')),
        sa.PrimaryKeyConstraint('id', name=op.f('pk_api_key')),
        sa.UniqueConstraint('sha256', name=op.f('uq_api_key_sha256'))
    )
    op.create_index(op.f('ix_api_key_principal_id'), 'api_key', ['principal_id'], unique=False)


def _population() -> None:
    op.create_table('population',
        sa.Column('id', sa.String(length=40), nullable=False),
        sa.Column('tenant_id', sa.String(length=40), nullable=False),
        sa.Column('code', sa.String(length=64), nullable=False),
        sa.Column('unit', sa.String(length=16), nullable=False),
        sa.Column('relation', sa.String(length=16), nullable=False),
        sa.Column('patients_public', sa.BigInteger(), nullable=False),
        sa.Column('patients_public_basis', sa.String(length=32), nullable=False),
        sa.Column('validation_fraction', sa.String(length=32), nullable=False),
        sa.Column('overlap_with', sa.Text(), nullable=True),
        sa.Column('alpha_star', sa.Integer(), nullable=True),
        sa.Column('delta', sa.String(length=32), nullable=True),
        sa.Column('epsilon_limit', sa.String(length=32), nullable=True),
        sa.Column('limit_pico', sa.BigInteger(), nullable=True),
        sa.Column('frozen', sa.Boolean(), nullable=False),
        sa.Column('split_key', sa.LargeBinary(), nullable=False),
        sa.Column('created_by', sa.String(length=40), nullable=False),
        sa.Column('created_at', sa.BigInteger(), nullable=False),
        sa.CheckConstraint("relation = 'add_remove'", name=op.f('ck_population_relation')),
        sa.CheckConstraint("unit IN ('patient', 'record')", name=op.f('ck_population_unit')),
        sa.CheckConstraint('(alpha_star IS NULL) = (limit_pico IS NULL) AND (delta IS NULL) = (limit_pico IS NULL) AND (epsilon_limit IS NULL) = (limit_pico IS NULL)', name=op.f('ck_population_granted_together')),
        sa.CheckConstraint('alpha_star IS NULL OR alpha_star BETWEEN 2 AND 64', name=op.f('ck_population_order')),
        sa.CheckConstraint('limit_pico IS NULL OR limit_pico > 0', name=op.f('ck_population_limit_pico')),
        sa.CheckConstraint('patients_public >= 2', name=op.f('ck_population_patients_public')),
        sa.ForeignKeyConstraint(['created_by'], ['principal.id'], name=op.f('fk_population_created_by')),
        sa.ForeignKeyConstraint(['tenant_id'], ['tenant.id'], name=op.f('fk_population_tenant_id')),
        sa.PrimaryKeyConstraint('id', name=op.f('pk_population'))
    )
    op.create_index(op.f('ix_population_tenant_id'), 'population', ['tenant_id'], unique=False)
    op.create_index('uq_population_tenant_id_code', 'population', ['tenant_id', 'code'], unique=True)


def _account() -> None:
    op.create_table('account',
        sa.Column('id', sa.String(length=120), nullable=False),
        sa.Column('population_id', sa.String(length=40), nullable=False),
        sa.Column('block', sa.String(length=16), nullable=False),
        sa.Column('kind', sa.String(length=16), nullable=False),
        sa.Column('job_id', sa.String(length=40), nullable=True),
        sa.Column('name', sa.String(length=80), nullable=False),
        sa.Column('balance_pico', sa.BigInteger(), nullable=False),
        sa.Column('version', sa.BigInteger(), nullable=False),
        sa.CheckConstraint("(kind = 'escrow') = (job_id IS NOT NULL)", name=op.f('ck_account_escrow_has_job')),
        sa.CheckConstraint("balance_pico >= 0 OR kind = 'issuance'", name=op.f('ck_account_not_overdrawn')),
        sa.CheckConstraint("kind IN ('issuance', 'budget', 'escrow', 'spent')", name=op.f('ck_account_kind')),
        sa.ForeignKeyConstraint(['population_id'], ['population.id'], name=op.f('fk_account_population_id')),
        sa.PrimaryKeyConstraint('id', name=op.f('pk_account'))
    )
    op.create_index('ix_account_job_id', 'account', ['job_id'], unique=False)
    op.create_index('uq_account_population_id_name', 'account', ['population_id', 'name'], unique=True)


def _budget_grant() -> None:
    op.create_table('budget_grant',
        sa.Column('id', sa.String(length=40), nullable=False),
        sa.Column('tenant_id', sa.String(length=40), nullable=False),
        sa.Column('population_id', sa.String(length=40), nullable=False),
        sa.Column('epsilon', sa.String(length=32), nullable=False),
        sa.Column('delta', sa.String(length=32), nullable=False),
        sa.Column('alpha_star', sa.Integer(), nullable=False),
        sa.Column('limit_pico', sa.BigInteger(), nullable=False),
        sa.Column('limit_before_pico', sa.BigInteger(), nullable=False),
        sa.Column('reason_code', sa.String(length=40), nullable=False),
        sa.Column('state', sa.String(length=16), nullable=False),
        sa.Column('proposed_by', sa.String(length=40), nullable=False),
        sa.Column('log_id', sa.String(length=64), nullable=False),
        sa.Column('idx', sa.BigInteger(), nullable=False),
        sa.Column('created_at', sa.BigInteger(), nullable=False),
        sa.CheckConstraint("state IN ('proposed', 'effective', 'rejected', 'expired')", name=op.f('ck_budget_grant_state')),
        sa.ForeignKeyConstraint(['log_id'], ['log_head.log_id'], name=op.f('fk_budget_grant_log_id')),
        sa.ForeignKeyConstraint(['population_id'], ['population.id'], name=op.f('fk_budget_grant_population_id')),
        sa.ForeignKeyConstraint(['proposed_by'], ['principal.id'], name=op.f('fk_budget_grant_proposed_by')),
        sa.ForeignKeyConstraint(['tenant_id'], ['tenant.id'], name=op.f('fk_budget_grant_tenant_id')),
        sa.PrimaryKeyConstraint('id', name=op.f('pk_budget_grant'))
    )
    op.create_index(op.f('ix_budget_grant_population_id'), 'budget_grant', ['population_id'], unique=False)
    op.create_index('ix_budget_grant_tenant_id_created_at_id', 'budget_grant', ['tenant_id', 'created_at', 'id'], unique=False)


def _dataset() -> None:
    op.create_table('dataset',
        sa.Column('id', sa.String(length=40), nullable=False),
        sa.Column('tenant_id', sa.String(length=40), nullable=False),
        sa.Column('population_id', sa.String(length=40), nullable=False),
        sa.Column('unit_field', sa.String(length=64), nullable=True),
        sa.Column('records_are_unique_patients', sa.Boolean(), nullable=False),
        sa.Column('created_by', sa.String(length=40), nullable=False),
        sa.Column('created_at', sa.BigInteger(), nullable=False),
        sa.CheckConstraint('unit_field IS NOT NULL OR records_are_unique_patients', name=op.f('ck_dataset_unit_is_known')),
        sa.ForeignKeyConstraint(['created_by'], ['principal.id'], name=op.f('fk_dataset_created_by')),
        sa.ForeignKeyConstraint(['population_id'], ['population.id'], name=op.f('fk_dataset_population_id')),
        sa.ForeignKeyConstraint(['tenant_id'], ['tenant.id'], name=op.f('fk_dataset_tenant_id')),
        sa.PrimaryKeyConstraint('id', name=op.f('pk_dataset'))
    )
    op.create_index(op.f('ix_dataset_population_id'), 'dataset', ['population_id'], unique=False)
    op.create_index('ix_dataset_tenant_id_created_at_id', 'dataset', ['tenant_id', 'created_at', 'id'], unique=False)


def _entry() -> None:
    op.create_table('entry',
        sa.Column('log_id', sa.String(length=64), nullable=False),
        sa.Column('idx', sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column('type', sa.String(length=32), nullable=False),
        sa.Column('ts', sa.String(length=17), nullable=False),
        sa.Column('actor', sa.String(length=64), nullable=False),
        sa.Column('population_id', sa.String(length=40), nullable=True),
        sa.Column('job_id', sa.String(length=40), nullable=True),
        sa.Column('idem', sa.String(length=160), nullable=False),
        sa.Column('body', sa.Text(), nullable=False),
        sa.Column('leaf', sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(['log_id'], ['log_head.log_id'], name=op.f('fk_entry_log_id')),
        sa.ForeignKeyConstraint(['population_id'], ['population.id'], name=op.f('fk_entry_population_id')),
        sa.PrimaryKeyConstraint('log_id', 'idx', name=op.f('pk_entry'))
    )
    op.create_index('ix_entry_job_id_type', 'entry', ['job_id', 'type'], unique=False)
    op.create_index('ix_entry_population_id_idx', 'entry', ['population_id', 'idx'], unique=False)
    op.create_index('uq_entry_log_id_idem', 'entry', ['log_id', 'idem'], unique=True)


def _job() -> None:
    op.create_table('job',
        sa.Column('id', sa.String(length=40), nullable=False),
        sa.Column('tenant_id', sa.String(length=40), nullable=False),
        sa.Column('created_by', sa.String(length=40), nullable=False),
        sa.Column('population_id', sa.String(length=40), nullable=False),
        sa.Column('dataset_version_id', sa.String(length=40), nullable=False),
        sa.Column('training_file_id', sa.String(length=40), nullable=False),
        sa.Column('model', sa.String(length=200), nullable=False),
        sa.Column('model_dir', sa.Text(), nullable=False),
        sa.Column('job_dir', sa.Text(), nullable=False),
        sa.Column('spec', sa.Text(), nullable=False),
        sa.Column('labels', sa.JSON(), nullable=False),
        sa.Column('seed', sa.BigInteger(), nullable=False),
        sa.Column('plan', sa.Text(), nullable=False),
        sa.Column('plan_digest', sa.String(length=64), nullable=False),
        sa.Column('alpha_population', sa.Integer(), nullable=False),
        sa.Column('priority', sa.Integer(), nullable=False),
        sa.Column('state', sa.String(length=24), nullable=False),
        sa.Column('reason_code', sa.String(length=40), nullable=True),
        sa.Column('last_failure_code', sa.String(length=40), nullable=True),
        sa.Column('cancel_requested', sa.Boolean(), nullable=False),
        sa.Column('epoch', sa.Integer(), nullable=False),
        sa.Column('attempt', sa.Integer(), nullable=False),
        sa.Column('lease_owner', sa.String(length=80), nullable=True),
        sa.Column('lease_expires_at', sa.BigInteger(), nullable=True),
        sa.Column('lease_seconds', sa.Integer(), nullable=False),
        sa.Column('not_before', sa.BigInteger(), nullable=False),
        sa.Column('rung_at', sa.BigInteger(), nullable=False),
        sa.Column('progress_at', sa.BigInteger(), nullable=False),
        sa.Column('step', sa.Integer(), nullable=False),
        sa.Column('window_no', sa.Integer(), nullable=False),
        sa.Column('created_at', sa.BigInteger(), nullable=False),
        sa.Column('started_at', sa.BigInteger(), nullable=True),
        sa.Column('finished_at', sa.BigInteger(), nullable=True),
        sa.CheckConstraint("(finished_at IS NOT NULL) = (state IN ('succeeded', 'budget_stopped', 'failed', 'cancelled'))", name=op.f('ck_job_finished_at')),
        sa.CheckConstraint("state IN ('budget_stopped', 'cancelled', 'cancelling', 'failed', 'queued', 'recovering', 'running', 'starting', 'succeeded')", name=op.f('ck_job_state')),
        sa.CheckConstraint('(lease_owner IS NULL) = (lease_expires_at IS NULL)', name=op.f('ck_job_lease')),
        sa.CheckConstraint('epoch >= 0 AND attempt >= 0 AND attempt <= epoch', name=op.f('ck_job_epoch')),
        sa.ForeignKeyConstraint(['created_by'], ['principal.id'], name=op.f('fk_job_created_by')),
        sa.ForeignKeyConstraint(['population_id'], ['population.id'], name=op.f('fk_job_population_id')),
        sa.ForeignKeyConstraint(['tenant_id'], ['tenant.id'], name=op.f('fk_job_tenant_id')),
        sa.PrimaryKeyConstraint('id', name=op.f('pk_job'))
    )
    op.create_index('ix_job_state_not_before', 'job', ['state', 'not_before'], unique=False)
    op.create_index('ix_job_tenant_id_created_at_id', 'job', ['tenant_id', 'created_at', 'id'], unique=False)


def _reservation() -> None:
    op.create_table('reservation',
        sa.Column('job_id', sa.String(length=40), nullable=False),
        sa.Column('tenant_id', sa.String(length=40), nullable=False),
        sa.Column('population_id', sa.String(length=40), nullable=False),
        sa.Column('log_id', sa.String(length=64), nullable=False),
        sa.Column('reserved_idx', sa.BigInteger(), nullable=False),
        sa.Column('settled_idx', sa.BigInteger(), nullable=True),
        sa.Column('actor', sa.String(length=64), nullable=False),
        sa.Column('plan_digest', sa.String(length=64), nullable=False),
        sa.Column('mode', sa.String(length=16), nullable=False),
        sa.Column('alpha_star', sa.Integer(), nullable=False),
        sa.Column('alpha_job', sa.Integer(), nullable=True),
        sa.Column('steps_per_window_max', sa.Integer(), nullable=False),
        sa.Column('job_limit', sa.BigInteger(), nullable=False),
        sa.Column('job_spent', sa.BigInteger(), nullable=False),
        sa.Column('windows_charged', sa.Integer(), nullable=False),
        sa.Column('windows_done', sa.Integer(), nullable=False),
        sa.Column('windows_abandoned', sa.Integer(), nullable=False),
        sa.Column('open_window', sa.Integer(), nullable=True),
        sa.Column('queries_charged', sa.Integer(), nullable=False),
        sa.Column('state', sa.String(length=16), nullable=False),
        sa.CheckConstraint("(state = 'settled') = (settled_idx IS NOT NULL)", name=op.f('ck_reservation_settled_idx')),
        sa.CheckConstraint("state IN ('open', 'settled')", name=op.f('ck_reservation_state')),
        sa.CheckConstraint('job_spent >= 0 AND job_spent <= job_limit', name=op.f('ck_reservation_job_limit')),
        sa.CheckConstraint('open_window IS NULL OR open_window < windows_charged', name=op.f('ck_reservation_open_window')),
        sa.ForeignKeyConstraint(['log_id'], ['log_head.log_id'], name=op.f('fk_reservation_log_id')),
        sa.ForeignKeyConstraint(['population_id'], ['population.id'], name=op.f('fk_reservation_population_id')),
        sa.ForeignKeyConstraint(['tenant_id'], ['tenant.id'], name=op.f('fk_reservation_tenant_id')),
        sa.PrimaryKeyConstraint('job_id', name=op.f('pk_reservation'))
    )
    op.create_index(op.f('ix_reservation_population_id'), 'reservation', ['population_id'], unique=False)
    op.create_index(op.f('ix_reservation_tenant_id'), 'reservation', ['tenant_id'], unique=False)


def _approval() -> None:
    op.create_table('approval',
        sa.Column('log_id', sa.String(length=64), nullable=False),
        sa.Column('idx', sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column('approver', sa.String(length=40), nullable=False),
        sa.Column('decision', sa.String(length=8), nullable=False),
        sa.Column('signature', sa.String(length=88), nullable=False),
        sa.Column('created_at', sa.BigInteger(), nullable=False),
        sa.CheckConstraint("decision IN ('approve', 'reject')", name=op.f('ck_approval_decision')),
        sa.ForeignKeyConstraint(['approver'], ['principal.id'], name=op.f('fk_approval_approver')),
        sa.ForeignKeyConstraint(['log_id', 'idx'], ['entry.log_id', 'entry.idx'], name=op.f('fk_approval_log_id_idx')),
        sa.PrimaryKeyConstraint('log_id', 'idx', 'approver', name=op.f('pk_approval'))
    )


def _artifact() -> None:
    op.create_table('artifact',
        sa.Column('id', sa.String(length=40), nullable=False),
        sa.Column('tenant_id', sa.String(length=40), nullable=False),
        sa.Column('job_id', sa.String(length=40), nullable=False),
        sa.Column('name', sa.String(length=80), nullable=False),
        sa.Column('path', sa.Text(), nullable=False),
        sa.Column('sha256', sa.String(length=64), nullable=False),
        sa.Column('size_bytes', sa.BigInteger(), nullable=False),
        sa.Column('created_at', sa.BigInteger(), nullable=False),
        sa.CheckConstraint('size_bytes >= 0', name=op.f('ck_artifact_size_bytes')),
        sa.ForeignKeyConstraint(['job_id'], ['job.id'], name=op.f('fk_artifact_job_id')),
        sa.ForeignKeyConstraint(['tenant_id'], ['tenant.id'], name=op.f('fk_artifact_tenant_id')),
        sa.PrimaryKeyConstraint('id', name=op.f('pk_artifact'))
    )
    op.create_index('uq_artifact_job_id_name', 'artifact', ['job_id', 'name'], unique=True)


def _attempt() -> None:
    op.create_table('attempt',
        sa.Column('job_id', sa.String(length=40), nullable=False),
        sa.Column('epoch', sa.Integer(), autoincrement=False, nullable=False),
        sa.Column('worker_key', sa.String(length=64), nullable=False),
        sa.Column('started_at', sa.BigInteger(), nullable=False),
        sa.Column('ended_reason', sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(['job_id'], ['reservation.job_id'], name=op.f('fk_attempt_job_id')),
        sa.PrimaryKeyConstraint('job_id', 'epoch', name=op.f('pk_attempt'))
    )


def _file() -> None:
    op.create_table('file',
        sa.Column('id', sa.String(length=40), nullable=False),
        sa.Column('tenant_id', sa.String(length=40), nullable=False),
        sa.Column('uploaded_by', sa.String(length=40), nullable=False),
        sa.Column('dataset_id', sa.String(length=40), nullable=True),
        sa.Column('version_id', sa.String(length=40), nullable=False),
        sa.Column('filename', sa.Text(), nullable=False),
        sa.Column('kind', sa.String(length=8), nullable=False),
        sa.Column('unit_field', sa.String(length=64), nullable=True),
        sa.Column('size_bytes', sa.BigInteger(), nullable=False),
        sa.Column('sha256', sa.String(length=64), nullable=False),
        sa.Column('status', sa.String(length=16), nullable=False),
        sa.Column('errors_total', sa.Integer(), nullable=False),
        sa.Column('blob_path', sa.Text(), nullable=True),
        sa.Column('blob_sha256', sa.String(length=64), nullable=True),
        sa.Column('created_at', sa.BigInteger(), nullable=False),
        sa.Column('expires_at', sa.BigInteger(), nullable=True),
        sa.Column('deleted_at', sa.BigInteger(), nullable=True),
        sa.CheckConstraint("(status = 'processed') = (errors_total = 0)", name=op.f('ck_file_errors_total')),
        sa.CheckConstraint("kind IN ('jsonl', 'csv')", name=op.f('ck_file_kind')),
        sa.CheckConstraint("status IN ('processed', 'error')", name=op.f('ck_file_status')),
        sa.CheckConstraint('(blob_path IS NULL) = (blob_sha256 IS NULL)', name=op.f('ck_file_blob')),
        sa.CheckConstraint('deleted_at IS NULL OR blob_path IS NULL', name=op.f('ck_file_deleted_has_no_blob')),
        sa.ForeignKeyConstraint(['dataset_id'], ['dataset.id'], name=op.f('fk_file_dataset_id')),
        sa.ForeignKeyConstraint(['tenant_id'], ['tenant.id'], name=op.f('fk_file_tenant_id')),
        sa.ForeignKeyConstraint(['uploaded_by'], ['principal.id'], name=op.f('fk_file_uploaded_by')),
        sa.PrimaryKeyConstraint('id', name=op.f('pk_file')),
        sa.UniqueConstraint('version_id', name=op.f('uq_file_version_id'))
    )
    op.create_index(op.f('ix_file_expires_at'), 'file', ['expires_at'], unique=False)
    op.create_index('ix_file_tenant_id_created_at_id', 'file', ['tenant_id', 'created_at', 'id'], unique=False)


def _job_checkpoint() -> None:
    op.create_table('job_checkpoint',
        sa.Column('seq', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=True, nullable=False),
        sa.Column('id', sa.String(length=40), nullable=False),
        sa.Column('job_id', sa.String(length=40), nullable=False),
        sa.Column('epoch', sa.Integer(), nullable=False),
        sa.Column('step', sa.Integer(), nullable=False),
        sa.Column('window', sa.Integer(), nullable=False),
        sa.Column('directory', sa.Text(), nullable=False),
        sa.Column('sha256', sa.String(length=64), nullable=False),
        sa.Column('epsilon_so_far', sa.String(length=32), nullable=False),
        sa.Column('created_at', sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(['job_id'], ['job.id'], name=op.f('fk_job_checkpoint_job_id')),
        sa.PrimaryKeyConstraint('seq', name=op.f('pk_job_checkpoint')),
        sa.UniqueConstraint('id', name=op.f('uq_job_checkpoint_id'))
    )
    op.create_index('uq_job_checkpoint_job_id_epoch_step', 'job_checkpoint', ['job_id', 'epoch', 'step'], unique=True)


def _job_event() -> None:
    op.create_table('job_event',
        sa.Column('seq', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=True, nullable=False),
        sa.Column('id', sa.String(length=40), nullable=False),
        sa.Column('job_id', sa.String(length=40), nullable=False),
        sa.Column('created_at', sa.BigInteger(), nullable=False),
        sa.Column('level', sa.String(length=8), nullable=False),
        sa.Column('type', sa.String(length=16), nullable=False),
        sa.Column('message', sa.String(length=400), nullable=False),
        sa.Column('data', sa.Text(), nullable=False),
        sa.CheckConstraint("level IN ('info', 'warn', 'error')", name=op.f('ck_job_event_level')),
        sa.ForeignKeyConstraint(['job_id'], ['job.id'], name=op.f('fk_job_event_job_id')),
        sa.PrimaryKeyConstraint('seq', name=op.f('pk_job_event')),
        sa.UniqueConstraint('id', name=op.f('uq_job_event_id'))
    )
    op.create_index('ix_job_event_job_id_seq', 'job_event', ['job_id', 'seq'], unique=False)


def _job_metric() -> None:
    op.create_table('job_metric',
        sa.Column('job_id', sa.String(length=40), nullable=False),
        sa.Column('name', sa.String(length=40), nullable=False),
        sa.Column('group_id', sa.String(length=160), nullable=False),
        sa.Column('step', sa.Integer(), autoincrement=False, nullable=False),
        sa.Column('epoch', sa.Integer(), nullable=False),
        sa.Column('value', sa.String(length=40), nullable=False),
        sa.ForeignKeyConstraint(['job_id'], ['job.id'], name=op.f('fk_job_metric_job_id')),
        sa.PrimaryKeyConstraint('job_id', 'name', 'group_id', 'step', name=op.f('pk_job_metric'))
    )


def _outbox() -> None:
    op.create_table('outbox',
        sa.Column('seq', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=True, nullable=False),
        sa.Column('topic', sa.String(length=16), nullable=False),
        sa.Column('job_id', sa.String(length=40), nullable=False),
        sa.Column('state', sa.String(length=24), nullable=False),
        sa.Column('created_at', sa.BigInteger(), nullable=False),
        sa.Column('not_before', sa.BigInteger(), nullable=False),
        sa.Column('held_until', sa.BigInteger(), nullable=False),
        sa.Column('sent_at', sa.BigInteger(), nullable=True),
        sa.CheckConstraint("topic IN ('doorbell', 'job_state')", name=op.f('ck_outbox_topic')),
        sa.ForeignKeyConstraint(['job_id'], ['job.id'], name=op.f('fk_outbox_job_id')),
        sa.PrimaryKeyConstraint('seq', name=op.f('pk_outbox'))
    )
    op.create_index('ix_outbox_sent_at_not_before', 'outbox', ['sent_at', 'not_before'], unique=False)


def _posting() -> None:
    op.create_table('posting',
        sa.Column('log_id', sa.String(length=64), nullable=False),
        sa.Column('idx', sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column('account_id', sa.String(length=120), nullable=False),
        sa.Column('amount_pico', sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(['account_id'], ['account.id'], name=op.f('fk_posting_account_id')),
        sa.ForeignKeyConstraint(['log_id', 'idx'], ['entry.log_id', 'entry.idx'], name=op.f('fk_posting_log_id_idx')),
        sa.PrimaryKeyConstraint('log_id', 'idx', 'account_id', name=op.f('pk_posting'))
    )
    op.create_index('ix_posting_account_id', 'posting', ['account_id'], unique=False)


def _release_request() -> None:
    op.create_table('release_request',
        sa.Column('id', sa.String(length=40), nullable=False),
        sa.Column('tenant_id', sa.String(length=40), nullable=False),
        sa.Column('job_id', sa.String(length=40), nullable=False),
        sa.Column('certificate_digest', sa.String(length=64), nullable=False),
        sa.Column('artifacts', sa.Text(), nullable=False),
        sa.Column('state', sa.String(length=16), nullable=False),
        sa.Column('proposed_by', sa.String(length=40), nullable=False),
        sa.Column('log_id', sa.String(length=64), nullable=False),
        sa.Column('idx', sa.BigInteger(), nullable=False),
        sa.Column('created_at', sa.BigInteger(), nullable=False),
        sa.CheckConstraint("state IN ('requested', 'published', 'rejected', 'expired', 'withdrawn')", name=op.f('ck_release_request_state')),
        sa.ForeignKeyConstraint(['job_id'], ['reservation.job_id'], name=op.f('fk_release_request_job_id')),
        sa.ForeignKeyConstraint(['log_id'], ['log_head.log_id'], name=op.f('fk_release_request_log_id')),
        sa.ForeignKeyConstraint(['proposed_by'], ['principal.id'], name=op.f('fk_release_request_proposed_by')),
        sa.ForeignKeyConstraint(['tenant_id'], ['tenant.id'], name=op.f('fk_release_request_tenant_id')),
        sa.PrimaryKeyConstraint('id', name=op.f('pk_release_request'))
    )
    op.create_index('ix_release_request_job_id', 'release_request', ['job_id'], unique=False)
    op.create_index('ix_release_request_tenant_id_created_at_id', 'release_request', ['tenant_id', 'created_at', 'id'], unique=False)


def _reservation_block() -> None:
    op.create_table('reservation_block',
        sa.Column('job_id', sa.String(length=40), nullable=False),
        sa.Column('block', sa.String(length=16), nullable=False),
        sa.Column('q', sa.String(length=32), nullable=False),
        sa.Column('levels', sa.Text(), nullable=False),
        sa.Column('steps_max', sa.BigInteger(), nullable=False),
        sa.Column('steps_started', sa.BigInteger(), nullable=False),
        sa.Column('reserved_pico', sa.BigInteger(), nullable=False),
        sa.Column('spent_pico', sa.BigInteger(), nullable=False),
        sa.CheckConstraint('spent_pico >= 0 AND spent_pico <= reserved_pico', name=op.f('ck_reservation_block_spent')),
        sa.CheckConstraint('steps_started >= 0 AND steps_started <= steps_max', name=op.f('ck_reservation_block_steps')),
        sa.ForeignKeyConstraint(['job_id'], ['reservation.job_id'], name=op.f('fk_reservation_block_job_id')),
        sa.PrimaryKeyConstraint('job_id', 'block', name=op.f('pk_reservation_block'))
    )


def _spend_tally() -> None:
    op.create_table('spend_tally',
        sa.Column('job_id', sa.String(length=40), nullable=False),
        sa.Column('block', sa.String(length=16), nullable=False),
        sa.Column('q', sa.String(length=32), nullable=False),
        sa.Column('noise_multiplier', sa.String(length=32), nullable=False),
        sa.Column('population_id', sa.String(length=40), nullable=False),
        sa.Column('steps', sa.BigInteger(), nullable=False),
        sa.CheckConstraint('steps > 0', name=op.f('ck_spend_tally_steps')),
        sa.ForeignKeyConstraint(['job_id'], ['reservation.job_id'], name=op.f('fk_spend_tally_job_id')),
        sa.ForeignKeyConstraint(['population_id'], ['population.id'], name=op.f('fk_spend_tally_population_id')),
        sa.PrimaryKeyConstraint('job_id', 'block', 'q', 'noise_multiplier', name=op.f('pk_spend_tally'))
    )
    op.create_index('ix_spend_tally_population_id_block', 'spend_tally', ['population_id', 'block'], unique=False)


def _dataset_version() -> None:
    op.create_table('dataset_version',
        sa.Column('id', sa.String(length=40), nullable=False),
        sa.Column('tenant_id', sa.String(length=40), nullable=False),
        sa.Column('dataset_id', sa.String(length=40), nullable=False),
        sa.Column('file_id', sa.String(length=40), nullable=False),
        sa.Column('path', sa.Text(), nullable=False),
        sa.Column('sha256', sa.String(length=64), nullable=False),
        sa.Column('unit', sa.String(length=16), nullable=False),
        sa.Column('state', sa.String(length=16), nullable=False),
        sa.Column('created_at', sa.BigInteger(), nullable=False),
        sa.CheckConstraint("state IN ('ready', 'erased')", name=op.f('ck_dataset_version_state')),
        sa.CheckConstraint("unit IN ('patient', 'record')", name=op.f('ck_dataset_version_unit')),
        sa.ForeignKeyConstraint(['dataset_id'], ['dataset.id'], name=op.f('fk_dataset_version_dataset_id')),
        sa.ForeignKeyConstraint(['file_id'], ['file.id'], name=op.f('fk_dataset_version_file_id')),
        sa.ForeignKeyConstraint(['tenant_id'], ['tenant.id'], name=op.f('fk_dataset_version_tenant_id')),
        sa.PrimaryKeyConstraint('id', name=op.f('pk_dataset_version')),
        sa.UniqueConstraint('file_id', name=op.f('uq_dataset_version_file_id'))
    )
    op.create_index('ix_dataset_version_dataset_id_created_at_id', 'dataset_version', ['dataset_id', 'created_at', 'id'], unique=False)


def _file_error() -> None:
    op.create_table('file_error',
        sa.Column('file_id', sa.String(length=40), nullable=False),
        sa.Column('seq', sa.Integer(), autoincrement=False, nullable=False),
        sa.Column('line', sa.BigInteger(), nullable=False),
        sa.Column('pointer', sa.String(length=80), nullable=False),
        sa.Column('code', sa.String(length=32), nullable=False),
        sa.Column('message', sa.String(length=200), nullable=False),
        sa.ForeignKeyConstraint(['file_id'], ['file.id'], name=op.f('fk_file_error_file_id')),
        sa.PrimaryKeyConstraint('file_id', 'seq', name=op.f('pk_file_error'))
    )
    # ### end Alembic commands ###
# fmt: on
