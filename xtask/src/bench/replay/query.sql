-- Elastic's two rules, as well as SQL can say them over one pass of the log.
SET threads TO 1;
SET enable_progress_bar = false;
CREATE TEMP TABLE opens AS
SELECT orchestrator.resource.name AS pod, "@timestamp" AS opened
FROM read_json('$OPENS', format = 'newline_delimited', columns = {
    '@timestamp': 'TIMESTAMP',
    host: 'STRUCT(os STRUCT("type" VARCHAR))',
    event: 'STRUCT(category VARCHAR[], "type" VARCHAR[], action VARCHAR)',
    file: 'STRUCT(path VARCHAR)',
    process: 'STRUCT(interactive BOOLEAN)',
    container: 'STRUCT(id VARCHAR)',
    orchestrator: 'STRUCT(resource STRUCT(name VARCHAR))'
})
WHERE host.os."type" = 'linux' AND list_contains(event.category, 'file')
  AND list_contains(event."type", 'change') AND event.action = 'open'
  AND file.path IN ('/var/run/secrets/kubernetes.io/serviceaccount/token',
                    '/var/run/secrets/kubernetes.io/serviceaccount/ca.crt')
  AND process.interactive AND container.id IS NOT NULL;
-- With what an alert has to say of the event: who asked for what, from where, and what came of it.
CREATE TEMP TABLE audit AS
SELECT stageTimestamp AS staged, requestReceivedTimestamp AS received, auditID AS id, stage, verb,
       requestURI AS uri, sourceIPs AS addresses, userAgent AS agent, responseStatus.code AS code,
       objectRef.resource AS resource, objectRef.subresource AS subresource,
       objectRef.namespace AS namespace, objectRef.name AS name, "user".username AS username,
       annotations['authorization.k8s.io/decision'] AS decision,
       annotations['authorization.k8s.io/reason'] AS reason,
       "user".extra['authentication.kubernetes.io/pod-name'] AS pods
FROM read_json('$AUDIT', format = 'newline_delimited', maximum_object_size = 67108864, columns = {
    auditID: 'VARCHAR', stage: 'VARCHAR', verb: 'VARCHAR', requestURI: 'VARCHAR',
    sourceIPs: 'VARCHAR[]', userAgent: 'VARCHAR', responseStatus: 'STRUCT(code INTEGER)',
    requestReceivedTimestamp: 'TIMESTAMP', stageTimestamp: 'TIMESTAMP',
    "user": 'STRUCT(username VARCHAR, extra MAP(VARCHAR, VARCHAR[]))',
    objectRef: 'STRUCT(resource VARCHAR, namespace VARCHAR, name VARCHAR, subresource VARCHAR)',
    annotations: 'MAP(VARCHAR, VARCHAR)'
})
WHERE (pods IS NOT NULL AND stage IN ('ResponseStarted', 'ResponseComplete')
       AND list_has_any(pods, (SELECT coalesce(list(DISTINCT pod), []) FROM opens)))
   OR (verb = 'create' AND resource = 'serviceaccounts' AND subresource = 'token');
SELECT
    (SELECT count(*) FROM (
        SELECT answers.staged, opens.opened,
               row_number() OVER (PARTITION BY answers.pod, opens.opened ORDER BY answers.staged) AS nth
        FROM (SELECT unnest(pods) AS pod, staged FROM audit
              WHERE stage IN ('ResponseStarted', 'ResponseComplete')) AS answers
        ASOF JOIN opens ON answers.pod = opens.pod AND answers.staged >= opens.opened)
     WHERE nth = 1 AND staged - opened <= INTERVAL 60 SECOND)
  + (SELECT count(*) FROM audit
     WHERE verb = 'create' AND resource = 'serviceaccounts' AND subresource = 'token'
       AND username IS NOT NULL AND NOT regexp_full_match(username,
        'system:kube-controller-manager|system:kube-scheduler|system:node:.*|eks:.*|aksService'
        || '|aks-service|masterclient|nodeclient|system:gke-controller-manager'
        || '|system:serviceaccount:(kube-system|gke-managed-system|gke-connect|calico-system'
        || '|anthos-identity-service|tigera-operator):.*')) AS alerts;
