-- The schema at head, dumped by `make schema`. To change it, write a migration.

CREATE FUNCTION public.attempts_end_once() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION USING
        MESSAGE = 'attempt ' || OLD.token || ' has ended and cannot live again', ERRCODE = 'check_violation';
END $$;

CREATE FUNCTION public.deployments_version() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    NEW.resource_version := nextval('resource_version');
    RETURN NEW;
END $$;

CREATE FUNCTION public.leases_term() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION USING
        MESSAGE = 'the term of lease ' || OLD.name || ' only increases, and a new holder needs a new term',
        ERRCODE = 'check_violation';
END $$;

CREATE TABLE public.attempts (
    token text NOT NULL COLLATE pg_catalog."C",
    replica_uid text NOT NULL,
    number integer NOT NULL,
    intended_at timestamp with time zone NOT NULL,
    submitted_at timestamp with time zone,
    refusal text DEFAULT ''::text NOT NULL,
    job_id bigint,
    job jsonb,
    running_since timestamp with time zone,
    missing_since timestamp with time zone,
    phase text DEFAULT 'none'::text NOT NULL,
    phase_message text DEFAULT ''::text NOT NULL,
    restart_count integer,
    host text,
    port integer,
    registered_at timestamp with time zone,
    ready_at timestamp with time zone,
    reported_at timestamp with time zone,
    drain_at timestamp with time zone,
    signalled_at timestamp with time zone,
    cancelled_at timestamp with time zone,
    ended_at timestamp with time zone,
    end_message text DEFAULT ''::text NOT NULL,
    exit_code integer,
    last_words text DEFAULT ''::text NOT NULL,
    failed boolean DEFAULT false NOT NULL,
    running_requests integer DEFAULT 0 NOT NULL,
    waiting_requests integer DEFAULT 0 NOT NULL,
    kv_cache_usage double precision DEFAULT 0 NOT NULL,
    prompt_tokens_total bigint DEFAULT 0 NOT NULL,
    generation_tokens_total bigint DEFAULT 0 NOT NULL,
    secret_hash text NOT NULL,
    script text NOT NULL,
    handover_at timestamp with time zone,
    placement integer DEFAULT 0 NOT NULL,
    engine_port integer,
    adapters jsonb DEFAULT '[]'::jsonb NOT NULL,
    packed boolean DEFAULT false NOT NULL,
    withdrawn_at timestamp with time zone,
    halted_since timestamp with time zone,
    CONSTRAINT attempts_adapters_check CHECK ((jsonb_typeof(adapters) = 'array'::text)),
    CONSTRAINT attempts_ended_at_check CHECK ((ended_at >= intended_at)),
    CONSTRAINT attempts_engine_port_check CHECK (((engine_port >= 1) AND (engine_port <= 65535))),
    CONSTRAINT attempts_failed_check CHECK (((NOT failed) OR (ended_at IS NOT NULL))),
    CONSTRAINT attempts_host_check CHECK ((((host IS NULL) = (port IS NULL)) AND (host <> ''::text))),
    CONSTRAINT attempts_job_check CHECK ((jsonb_typeof(job) = 'object'::text)),
    CONSTRAINT attempts_job_id_check CHECK ((job_id > 0)),
    CONSTRAINT attempts_kv_cache_usage_check CHECK (((kv_cache_usage >= (0)::double precision) AND (kv_cache_usage <= (1)::double precision))),
    CONSTRAINT attempts_number_check CHECK ((number >= 1)),
    CONSTRAINT attempts_phase_check CHECK ((phase = ANY (ARRAY['none'::text, 'registered'::text, 'starting'::text, 'ready'::text, 'draining'::text, 'failed'::text, 'ended'::text]))),
    CONSTRAINT attempts_placement_check CHECK ((placement >= 0)),
    CONSTRAINT attempts_port_check CHECK (((port >= 1) AND (port <= 65535))),
    CONSTRAINT attempts_ready_at_check CHECK (((ready_at IS NULL) OR (registered_at IS NOT NULL))),
    CONSTRAINT attempts_registered_at_check CHECK (((registered_at IS NULL) OR (host IS NOT NULL))),
    CONSTRAINT attempts_requests_check CHECK (((running_requests >= 0) AND (waiting_requests >= 0))),
    CONSTRAINT attempts_restart_count_check CHECK ((restart_count >= 0)),
    CONSTRAINT attempts_secret_hash_check CHECK ((secret_hash <> ''::text)),
    CONSTRAINT attempts_submitted_at_check CHECK ((submitted_at >= intended_at)),
    CONSTRAINT attempts_token_check CHECK (((char_length(token) >= 1) AND (char_length(token) <= 64))),
    CONSTRAINT attempts_tokens_check CHECK (((prompt_tokens_total >= 0) AND (generation_tokens_total >= 0)))
)
WITH (fillfactor='70');

CREATE TABLE public.decisions (
    id bigint NOT NULL,
    tick text NOT NULL,
    deployment text NOT NULL COLLATE pg_catalog."C",
    replica text NOT NULL COLLATE pg_catalog."C",
    reason text NOT NULL,
    message text NOT NULL,
    actions jsonb DEFAULT '[]'::jsonb NOT NULL,
    count bigint DEFAULT 1 NOT NULL,
    first_at timestamp with time zone NOT NULL,
    last_at timestamp with time zone NOT NULL,
    CONSTRAINT decisions_actions_check CHECK ((jsonb_typeof(actions) = 'array'::text)),
    CONSTRAINT decisions_count_check CHECK ((count >= 1)),
    CONSTRAINT decisions_last_at_check CHECK ((last_at >= first_at)),
    CONSTRAINT decisions_subject_check CHECK (((replica = ''::text) OR (deployment <> ''::text)))
);

ALTER TABLE public.decisions ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.decisions_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.deployments (
    uid text NOT NULL,
    name text NOT NULL COLLATE pg_catalog."C",
    labels jsonb DEFAULT '{}'::jsonb NOT NULL,
    spec jsonb NOT NULL,
    generation bigint DEFAULT 1 NOT NULL,
    resource_version bigint NOT NULL,
    revision bigint DEFAULT 1 NOT NULL,
    next_replica_number bigint DEFAULT 1 NOT NULL,
    paused boolean DEFAULT false NOT NULL,
    force_delete boolean DEFAULT false NOT NULL,
    secret text NOT NULL,
    observed_generation bigint DEFAULT 0 NOT NULL,
    conditions jsonb DEFAULT '[]'::jsonb NOT NULL,
    created_at timestamp with time zone NOT NULL,
    deleted_at timestamp with time zone,
    rollout_paused boolean DEFAULT false NOT NULL,
    promoted_revision bigint DEFAULT 0 NOT NULL,
    rollout jsonb DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT deployments_conditions_check CHECK ((jsonb_typeof(conditions) = 'array'::text)),
    CONSTRAINT deployments_counts_check CHECK (((generation >= 1) AND (revision >= 1) AND (next_replica_number >= 1))),
    CONSTRAINT deployments_force_delete_check CHECK (((NOT force_delete) OR (deleted_at IS NOT NULL))),
    CONSTRAINT deployments_labels_check CHECK ((jsonb_typeof(labels) = 'object'::text)),
    CONSTRAINT deployments_name_check CHECK ((name <> ''::text)),
    CONSTRAINT deployments_observed_generation_check CHECK (((observed_generation >= 0) AND (observed_generation <= generation))),
    CONSTRAINT deployments_promoted_revision_check CHECK (((promoted_revision >= 0) AND (promoted_revision <= revision))),
    CONSTRAINT deployments_rollout_check CHECK ((jsonb_typeof(rollout) = 'object'::text)),
    CONSTRAINT deployments_secret_check CHECK ((secret <> ''::text)),
    CONSTRAINT deployments_spec_check CHECK ((jsonb_typeof(spec) = 'object'::text))
);

CREATE TABLE public.installation (
    single boolean DEFAULT true NOT NULL,
    id text NOT NULL,
    created_at timestamp with time zone NOT NULL,
    CONSTRAINT installation_id_check CHECK ((id <> ''::text)),
    CONSTRAINT installation_single_check CHECK (single)
);

CREATE TABLE public.leases (
    name text NOT NULL,
    holder text NOT NULL,
    term bigint NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    CONSTRAINT leases_term_check CHECK ((term >= 1))
);

CREATE TABLE public.members (
    role text NOT NULL,
    id text NOT NULL,
    address text NOT NULL,
    open_since timestamp with time zone NOT NULL,
    seen_at timestamp with time zone NOT NULL,
    CONSTRAINT members_seen_at_check CHECK ((seen_at >= open_since))
);

CREATE TABLE public.model_names (
    name text NOT NULL COLLATE pg_catalog."C",
    deployment_uid text NOT NULL
);

CREATE TABLE public.replicas (
    uid text NOT NULL,
    deployment_uid text NOT NULL,
    number bigint NOT NULL,
    name text NOT NULL COLLATE pg_catalog."C",
    revision bigint NOT NULL,
    state text DEFAULT 'waiting'::text NOT NULL,
    message text DEFAULT ''::text NOT NULL,
    since timestamp with time zone NOT NULL,
    failures integer DEFAULT 0 NOT NULL,
    next_attempt_at timestamp with time zone,
    leaving boolean DEFAULT false NOT NULL,
    created_at timestamp with time zone NOT NULL,
    removed_at timestamp with time zone,
    burst boolean DEFAULT false NOT NULL,
    placement integer DEFAULT 0 NOT NULL,
    CONSTRAINT replicas_failures_check CHECK ((failures >= 0)),
    CONSTRAINT replicas_number_check CHECK ((number >= 1)),
    CONSTRAINT replicas_placement_check CHECK ((placement >= 0)),
    CONSTRAINT replicas_removed_at_check CHECK (((state = 'removed'::text) = (removed_at IS NOT NULL))),
    CONSTRAINT replicas_state_check CHECK ((state = ANY (ARRAY['waiting'::text, 'submitting'::text, 'queued'::text, 'starting'::text, 'ready'::text, 'draining'::text, 'stopping'::text, 'removed'::text])))
);

CREATE SEQUENCE public.resource_version
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

CREATE TABLE public.revision_events (
    id bigint NOT NULL,
    deployment_uid text NOT NULL,
    revision bigint NOT NULL,
    type text NOT NULL,
    at timestamp with time zone NOT NULL,
    author text DEFAULT ''::text NOT NULL,
    cause text DEFAULT ''::text NOT NULL,
    CONSTRAINT revision_events_type_check CHECK ((type = ANY (ARRAY['promoted'::text, 'completed'::text, 'failed'::text, 'undone'::text, 'rollouts_paused'::text, 'rollouts_resumed'::text, 'paused'::text, 'resumed'::text]))),
    CONSTRAINT revision_events_words_check CHECK (((char_length(author) <= 256) AND (char_length(cause) <= 1024)))
);

ALTER TABLE public.revision_events ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.revision_events_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.revisions (
    deployment_uid text NOT NULL,
    number bigint NOT NULL,
    spec jsonb NOT NULL,
    created_at timestamp with time zone NOT NULL,
    author text DEFAULT ''::text NOT NULL,
    cause text DEFAULT ''::text NOT NULL,
    proven boolean DEFAULT false NOT NULL,
    CONSTRAINT revisions_number_check CHECK ((number >= 1)),
    CONSTRAINT revisions_spec_check CHECK ((jsonb_typeof(spec) = 'object'::text)),
    CONSTRAINT revisions_words_check CHECK (((char_length(author) <= 256) AND (char_length(cause) <= 1024)))
);

ALTER TABLE ONLY public.attempts
    ADD CONSTRAINT attempts_pkey PRIMARY KEY (token);

ALTER TABLE ONLY public.attempts
    ADD CONSTRAINT attempts_replica_uid_number_key UNIQUE (replica_uid, number);

ALTER TABLE ONLY public.decisions
    ADD CONSTRAINT decisions_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.deployments
    ADD CONSTRAINT deployments_name_key UNIQUE (name);

ALTER TABLE ONLY public.deployments
    ADD CONSTRAINT deployments_pkey PRIMARY KEY (uid);

ALTER TABLE ONLY public.installation
    ADD CONSTRAINT installation_pkey PRIMARY KEY (single);

ALTER TABLE ONLY public.leases
    ADD CONSTRAINT leases_pkey PRIMARY KEY (name);

ALTER TABLE ONLY public.members
    ADD CONSTRAINT members_pkey PRIMARY KEY (role, id);

ALTER TABLE ONLY public.model_names
    ADD CONSTRAINT model_names_pkey PRIMARY KEY (name);

ALTER TABLE ONLY public.replicas
    ADD CONSTRAINT replicas_deployment_uid_number_key UNIQUE (deployment_uid, number);

ALTER TABLE ONLY public.replicas
    ADD CONSTRAINT replicas_name_key UNIQUE (name);

ALTER TABLE ONLY public.replicas
    ADD CONSTRAINT replicas_pkey PRIMARY KEY (uid);

ALTER TABLE ONLY public.revision_events
    ADD CONSTRAINT revision_events_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.revisions
    ADD CONSTRAINT revisions_pkey PRIMARY KEY (deployment_uid, number);

CREATE INDEX attempts_failed_index ON public.attempts USING btree (ended_at) WHERE failed;

CREATE UNIQUE INDEX attempts_live_index ON public.attempts USING btree (replica_uid) WHERE (ended_at IS NULL);

CREATE UNIQUE INDEX attempts_live_job_index ON public.attempts USING btree (job_id) WHERE (ended_at IS NULL);

CREATE INDEX decisions_deployment_index ON public.decisions USING btree (deployment, id);

CREATE INDEX decisions_last_at_index ON public.decisions USING btree (last_at);

CREATE INDEX decisions_subject_index ON public.decisions USING btree (deployment, replica, id);

CREATE INDEX model_names_deployment_uid_index ON public.model_names USING btree (deployment_uid);

CREATE INDEX replicas_removed_at_index ON public.replicas USING btree (removed_at);

CREATE INDEX revision_events_revision_index ON public.revision_events USING btree (deployment_uid, revision, id);

CREATE TRIGGER attempts_end_once BEFORE UPDATE OF ended_at ON public.attempts FOR EACH ROW WHEN (((old.ended_at IS NOT NULL) AND (new.ended_at IS NULL))) EXECUTE FUNCTION public.attempts_end_once();

CREATE TRIGGER deployments_version BEFORE INSERT OR UPDATE ON public.deployments FOR EACH ROW EXECUTE FUNCTION public.deployments_version();

CREATE TRIGGER leases_term BEFORE UPDATE ON public.leases FOR EACH ROW WHEN (((new.term < old.term) OR ((new.term = old.term) AND (new.holder <> old.holder)))) EXECUTE FUNCTION public.leases_term();

ALTER TABLE ONLY public.attempts
    ADD CONSTRAINT attempts_replica_uid_fkey FOREIGN KEY (replica_uid) REFERENCES public.replicas(uid) ON DELETE CASCADE;

ALTER TABLE ONLY public.model_names
    ADD CONSTRAINT model_names_deployment_uid_fkey FOREIGN KEY (deployment_uid) REFERENCES public.deployments(uid) ON DELETE CASCADE;

ALTER TABLE ONLY public.replicas
    ADD CONSTRAINT replicas_deployment_uid_fkey FOREIGN KEY (deployment_uid) REFERENCES public.deployments(uid) ON DELETE CASCADE;

ALTER TABLE ONLY public.replicas
    ADD CONSTRAINT replicas_deployment_uid_revision_fkey FOREIGN KEY (deployment_uid, revision) REFERENCES public.revisions(deployment_uid, number);

ALTER TABLE ONLY public.revision_events
    ADD CONSTRAINT revision_events_deployment_uid_revision_fkey FOREIGN KEY (deployment_uid, revision) REFERENCES public.revisions(deployment_uid, number) ON DELETE CASCADE;

ALTER TABLE ONLY public.revisions
    ADD CONSTRAINT revisions_deployment_uid_fkey FOREIGN KEY (deployment_uid) REFERENCES public.deployments(uid) ON DELETE CASCADE;
