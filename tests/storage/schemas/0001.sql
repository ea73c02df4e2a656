BEGIN TRANSACTION;
CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num));
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE alerts (
	id INTEGER NOT NULL, 
	fingerprint VARCHAR(64) NOT NULL, 
	episode BIGINT NOT NULL, 
	run_id INTEGER NOT NULL, 
	rule VARCHAR(100) NOT NULL, 
	severity INTEGER NOT NULL, 
	state VARCHAR(20) NOT NULL, 
	subject TEXT NOT NULL, 
	step BIGINT, 
	value DOUBLE, 
	threshold DOUBLE, 
	unit TEXT NOT NULL, 
	summary TEXT NOT NULL, 
	details TEXT NOT NULL, 
	opened_at DOUBLE NOT NULL, 
	fired_at DOUBLE, 
	resolved_at DOUBLE, 
	last_seen_at DOUBLE NOT NULL, 
	n_seen BIGINT NOT NULL, 
	CONSTRAINT pk_alerts PRIMARY KEY (id), 
	CONSTRAINT uq_alerts_fingerprint_episode UNIQUE (fingerprint, episode), 
	CONSTRAINT fk_alerts_run_id_runs FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE
);
INSERT INTO "alerts" VALUES(1,'f1',1,1,'nonfinite',30,'firing','a.weight',3,3.0,0.0,'elements','3 elements are NaN','[["first bad tensor", "a.weight"]]',100.0,100.0,NULL,100.0,1);
CREATE TABLE drifts (
	snapshot_id INTEGER NOT NULL, 
	position INTEGER NOT NULL, 
	tensor_id INTEGER NOT NULL, 
	reference_step BIGINT, 
	method VARCHAR(20) NOT NULL, 
	difference_l2 DOUBLE, 
	relative_l2 DOUBLE, 
	cosine_distance DOUBLE, 
	max_abs_difference DOUBLE, 
	n_changed BIGINT, 
	CONSTRAINT pk_drifts PRIMARY KEY (snapshot_id, position), 
	CONSTRAINT fk_drifts_snapshot_id_snapshots FOREIGN KEY(snapshot_id) REFERENCES snapshots (id) ON DELETE CASCADE, 
	CONSTRAINT fk_drifts_tensor_id_tensors FOREIGN KEY(tensor_id) REFERENCES tensors (id) ON DELETE CASCADE
)
 WITHOUT ROWID

;
INSERT INTO "drifts" VALUES(1,0,1,0,'sketch',0.1,0.01,0.001,NULL,NULL);
INSERT INTO "drifts" VALUES(2,0,1,0,'sketch',0.1,0.01,0.001,NULL,NULL);
INSERT INTO "drifts" VALUES(3,0,1,0,'sketch',0.1,0.01,0.001,NULL,NULL);
CREATE TABLE findings (
	snapshot_id INTEGER NOT NULL, 
	rule VARCHAR(100) NOT NULL, 
	identity TEXT NOT NULL, 
	severity INTEGER NOT NULL, 
	step BIGINT, 
	subject TEXT NOT NULL, 
	value DOUBLE, 
	threshold DOUBLE, 
	unit TEXT NOT NULL, 
	summary TEXT NOT NULL, 
	details TEXT NOT NULL, 
	CONSTRAINT pk_findings PRIMARY KEY (snapshot_id, rule, identity), 
	CONSTRAINT fk_findings_snapshot_id_snapshots FOREIGN KEY(snapshot_id) REFERENCES snapshots (id) ON DELETE CASCADE
);
INSERT INTO "findings" VALUES(1,'nonfinite','weights',30,1,'a.weight',3.0,0.0,'elements','3 elements are NaN','[["first bad tensor", "a.weight"], ["since step", "7"]]');
INSERT INTO "findings" VALUES(2,'nonfinite','weights',30,2,'a.weight',3.0,0.0,'elements','3 elements are NaN','[["first bad tensor", "a.weight"], ["since step", "7"]]');
INSERT INTO "findings" VALUES(3,'nonfinite','weights',30,3,'a.weight',3.0,0.0,'elements','3 elements are NaN','[["first bad tensor", "a.weight"], ["since step", "7"]]');
CREATE TABLE meta (
	"key" VARCHAR(100) NOT NULL, 
	value TEXT NOT NULL, 
	CONSTRAINT pk_meta PRIMARY KEY ("key")
);
CREATE TABLE outbox (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	notifier VARCHAR(100) NOT NULL, 
	deduplication_key VARCHAR(200) NOT NULL, 
	reason VARCHAR(20) NOT NULL, 
	fingerprint VARCHAR(64) NOT NULL, 
	episode BIGINT NOT NULL, 
	alert TEXT NOT NULL, 
	state VARCHAR(20) NOT NULL, 
	last_good_step BIGINT, 
	last_good_path TEXT, 
	created_at DOUBLE NOT NULL, 
	due_at DOUBLE NOT NULL, 
	sent_at DOUBLE, 
	n_attempts INTEGER NOT NULL, 
	last_error TEXT, 
	CONSTRAINT uq_outbox_notifier_deduplication_key UNIQUE (notifier, deduplication_key)
);
INSERT INTO "outbox" VALUES(1,'slack','k1','firing','f1',1,'{"fingerprint":"f1","episode":1,"rule":"nonfinite","severity":30,"state":"firing","subject":"a.weight","step":3,"value":3.0,"threshold":0.0,"unit":"elements","summary":"3 elements are NaN","details":"[[\"first bad tensor\", \"a.weight\"]]","opened_at":100.0,"fired_at":100.0,"resolved_at":null,"last_seen_at":100.0,"n_seen":1,"run":"gpt"}','pending',2,'/data/gpt/checkpoint-2.pt',5.0,5.0,NULL,0,NULL);
CREATE TABLE runs (
	id INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	root TEXT NOT NULL, 
	attempt INTEGER NOT NULL, 
	active BOOLEAN NOT NULL, 
	created_at DOUBLE NOT NULL, 
	seen_at DOUBLE NOT NULL, 
	CONSTRAINT pk_runs PRIMARY KEY (id), 
	CONSTRAINT uq_runs_name UNIQUE (name)
);
INSERT INTO "runs" VALUES(1,'gpt','/data',1,1,2000.0,100.0);
CREATE TABLE snapshot_scalars (
	snapshot_id INTEGER NOT NULL, 
	scalars TEXT NOT NULL, 
	CONSTRAINT pk_snapshot_scalars PRIMARY KEY (snapshot_id), 
	CONSTRAINT fk_snapshot_scalars_snapshot_id_snapshots FOREIGN KEY(snapshot_id) REFERENCES snapshots (id) ON DELETE CASCADE
);
INSERT INTO "snapshot_scalars" VALUES(1,'{"lr":0.001,"optimizer.betas.1":0.999}');
INSERT INTO "snapshot_scalars" VALUES(2,'{"lr":0.001,"optimizer.betas.1":0.999}');
INSERT INTO "snapshot_scalars" VALUES(3,'{"lr":0.001,"optimizer.betas.1":0.999}');
CREATE TABLE snapshots (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	run_id INTEGER NOT NULL, 
	attempt INTEGER NOT NULL, 
	sort_step BIGINT NOT NULL, 
	path TEXT NOT NULL, 
	signature TEXT NOT NULL, 
	format TEXT NOT NULL, 
	step BIGINT, 
	epoch DOUBLE, 
	status VARCHAR(20) NOT NULL, 
	problem_kind VARCHAR(40), 
	problem_message TEXT, 
	size_bytes BIGINT NOT NULL, 
	written_at DOUBLE NOT NULL, 
	measured_at DOUBLE NOT NULL, 
	n_tensors BIGINT NOT NULL, 
	n_parameters BIGINT NOT NULL, 
	n_nonfinite BIGINT NOT NULL, 
	weight_norm DOUBLE, 
	update_ratio DOUBLE, 
	gradient_norm DOUBLE, 
	gradient_source VARCHAR(40), 
	gradient_window_steps BIGINT, 
	gradient_beta2 DOUBLE, 
	first_bad_tensor TEXT, 
	reference_step BIGINT, 
	bytes_read BIGINT NOT NULL, 
	duration_seconds DOUBLE NOT NULL, 
	CONSTRAINT uq_snapshots_run_id_path_signature UNIQUE (run_id, path, signature), 
	CONSTRAINT fk_snapshots_run_id_runs FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE
);
INSERT INTO "snapshots" VALUES(1,1,1,1,'/data/gpt/checkpoint-1.pt','signature-1','torch',1,0.5,'complete',NULL,NULL,1000,1001.0,2000.0,2,13,0,3.0,0.01,0.3,'adam_window',10,0.999,NULL,0,1000,0.2);
INSERT INTO "snapshots" VALUES(2,1,1,2,'/data/gpt/checkpoint-2.pt','signature-2','torch',2,0.5,'complete',NULL,NULL,1000,1002.0,2000.0,2,13,0,3.0,0.01,0.3,'adam_window',10,0.999,NULL,0,1000,0.2);
INSERT INTO "snapshots" VALUES(3,1,1,3,'/data/gpt/checkpoint-3.pt','signature-3','torch',3,0.5,'complete',NULL,NULL,1000,1003.0,2000.0,2,13,0,3.0,0.01,0.3,'adam_window',10,0.999,NULL,0,1000,0.2);
CREATE TABLE tensor_distributions (
	snapshot_id INTEGER NOT NULL, 
	position INTEGER NOT NULL, 
	quantiles TEXT, 
	histogram BLOB, 
	CONSTRAINT pk_tensor_distributions PRIMARY KEY (snapshot_id, position), 
	CONSTRAINT fk_tensor_distributions_snapshot_id_snapshots FOREIGN KEY(snapshot_id) REFERENCES snapshots (id) ON DELETE CASCADE
);
INSERT INTO "tensor_distributions" VALUES(1,0,'{"0.5":0.05,"0.99":1.9}',X'01016962030000000C00000000000000FDFFFFFF000000007011010001010A');
INSERT INTO "tensor_distributions" VALUES(2,0,'{"0.5":0.05,"0.99":1.9}',X'01016962030000000C00000000000000FDFFFFFF000000007011010001010A');
INSERT INTO "tensor_distributions" VALUES(3,0,'{"0.5":0.05,"0.99":1.9}',X'01016962030000000C00000000000000FDFFFFFF000000007011010001010A');
CREATE TABLE tensor_sketches (
	snapshot_id INTEGER NOT NULL, 
	position INTEGER NOT NULL, 
	kind VARCHAR(20) NOT NULL, 
	n_buckets BIGINT NOT NULL, 
	seed BIGINT NOT NULL, 
	dtype VARCHAR(20) NOT NULL, 
	"values" BLOB NOT NULL, 
	CONSTRAINT pk_tensor_sketches PRIMARY KEY (snapshot_id, position), 
	CONSTRAINT fk_tensor_sketches_snapshot_id_snapshots FOREIGN KEY(snapshot_id) REFERENCES snapshots (id) ON DELETE CASCADE
);
INSERT INTO "tensor_sketches" VALUES(1,0,'raw',1021,7,'float32',X'000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F202122232425262728292A2B2C2D2E2F');
INSERT INTO "tensor_sketches" VALUES(2,0,'raw',1021,7,'float32',X'000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F202122232425262728292A2B2C2D2E2F');
INSERT INTO "tensor_sketches" VALUES(3,0,'raw',1021,7,'float32',X'000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F202122232425262728292A2B2C2D2E2F');
CREATE TABLE tensor_statistics (
	snapshot_id INTEGER NOT NULL, 
	position INTEGER NOT NULL, 
	tensor_id INTEGER NOT NULL, 
	n_elements BIGINT NOT NULL, 
	n_nan BIGINT NOT NULL, 
	n_posinf BIGINT NOT NULL, 
	n_neginf BIGINT NOT NULL, 
	n_zero BIGINT NOT NULL, 
	min DOUBLE, 
	max DOUBLE, 
	mean DOUBLE, 
	std DOUBLE, 
	norm_l1 DOUBLE, 
	norm_l2 DOUBLE, 
	abs_max DOUBLE, 
	tied_to TEXT, 
	problem TEXT, 
	CONSTRAINT pk_tensor_statistics PRIMARY KEY (snapshot_id, position), 
	CONSTRAINT fk_tensor_statistics_snapshot_id_snapshots FOREIGN KEY(snapshot_id) REFERENCES snapshots (id) ON DELETE CASCADE, 
	CONSTRAINT fk_tensor_statistics_tensor_id_tensors FOREIGN KEY(tensor_id) REFERENCES tensors (id) ON DELETE CASCADE
)
 WITHOUT ROWID

;
INSERT INTO "tensor_statistics" VALUES(1,0,1,12,0,0,0,1,-1.5,2.0,0.1,0.7,9.0,3.0,2.0,NULL,NULL);
INSERT INTO "tensor_statistics" VALUES(1,1,2,12,0,0,0,1,-1.5,2.0,0.1,0.7,9.0,3.0,2.0,NULL,NULL);
INSERT INTO "tensor_statistics" VALUES(2,0,1,12,0,0,0,1,-1.5,2.0,0.1,0.7,9.0,3.0,2.0,NULL,NULL);
INSERT INTO "tensor_statistics" VALUES(2,1,2,12,0,0,0,1,-1.5,2.0,0.1,0.7,9.0,3.0,2.0,NULL,NULL);
INSERT INTO "tensor_statistics" VALUES(3,0,1,12,0,0,0,1,-1.5,2.0,0.1,0.7,9.0,3.0,2.0,NULL,NULL);
INSERT INTO "tensor_statistics" VALUES(3,1,2,12,0,0,0,1,-1.5,2.0,0.1,0.7,9.0,3.0,2.0,NULL,NULL);
CREATE TABLE tensors (
	id INTEGER NOT NULL, 
	run_id INTEGER NOT NULL, 
	digest VARCHAR(32) NOT NULL, 
	name TEXT NOT NULL, 
	kind VARCHAR(20) NOT NULL, 
	dtype TEXT NOT NULL, 
	shape TEXT NOT NULL, 
	CONSTRAINT pk_tensors PRIMARY KEY (id), 
	CONSTRAINT uq_tensors_run_id_digest UNIQUE (run_id, digest), 
	CONSTRAINT fk_tensors_run_id_runs FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE
);
INSERT INTO "tensors" VALUES(1,1,'626d711dac92f12242d081afb499ee94','a.weight','parameter','float32','3,4');
INSERT INTO "tensors" VALUES(2,1,'e5abfa04268e0163ac7576566ef7e9c9','b.bias','parameter','float32','');
CREATE INDEX ix_outbox_fingerprint_episode ON outbox (fingerprint, episode);
CREATE INDEX ix_outbox_state_notifier_due_at ON outbox (state, notifier, due_at);
CREATE INDEX ix_snapshots_run_id_attempt_sort_step_id ON snapshots (run_id, attempt, sort_step, id);
CREATE INDEX ix_tensors_run_id_name ON tensors (run_id, name);
CREATE INDEX ix_alerts_opened_at ON alerts (opened_at);
CREATE INDEX ix_alerts_run_id_opened_at ON alerts (run_id, opened_at);
CREATE INDEX ix_alerts_state_opened_at ON alerts (state, opened_at);
CREATE INDEX ix_tensor_statistics_tensor_id_snapshot_id ON tensor_statistics (tensor_id, snapshot_id);
CREATE INDEX ix_drifts_tensor_id_snapshot_id ON drifts (tensor_id, snapshot_id);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('snapshots',3);
INSERT INTO "sqlite_sequence" VALUES('outbox',1);
COMMIT;
