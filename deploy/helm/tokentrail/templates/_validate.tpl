{{- /* What the schema cannot say: values that are fine alone and break something together. Each
       failure names the value to change. */ -}}
{{- define "tokentrail.validate" -}}
{{- include "tokentrail.validateConfig" . }}
{{- include "tokentrail.validateAudit" . }}
{{- include "tokentrail.validateNats" . }}
{{- include "tokentrail.validateMounts" . }}
{{- include "tokentrail.validateKeys" . }}
{{- /* A pod's own address is not known beforehand, and there is no host network. */ -}}
{{- if not (has .Values.admin.address (list "0.0.0.0" "::")) }}
{{- fail (printf "admin.address is %s, where the kubelet's probes and Prometheus do not reach the agent: set 0.0.0.0, or :: where pods have IPv6 addresses only" .Values.admin.address) }}
{{- end }}
{{- end }}

{{- /* Options of the agent that mounts, probes or permissions follow have values of their own. */ -}}
{{- define "tokentrail.validateConfig" -}}
{{- $owned := dict
  "alert-log" "set alertLog.file"
  "alert-log-max-mib" "set alertLog.maxMiB"
  "alert-log-keep" "set alertLog.keep"
  "pod-labels" "set alertLog.podLabels"
  "audit-log" "set audit.logFile"
  "audit-log-optional" "set audit.optional"
  "audit-webhook" "set audit.mode and audit.webhook.port"
  "audit-webhook-cert-file" "set audit.webhook.secretName"
  "audit-webhook-key-file" "set audit.webhook.secretName"
  "audit-webhook-client-ca-file" "set audit.webhook.clientCa"
  "audit-webhook-token-file" "set audit.webhook.tokens"
  "nats" "set nats.url"
  "nats-credentials-file" "set nats.credentialsFile"
  "nats-nkey-file" "set nats.nkeyFile"
  "nats-user" "set nats.user"
  "nats-password-file" "set nats.passwordFile"
  "nats-cert-file" "set nats.certFile"
  "nats-key-file" "set nats.keyFile"
  "nats-ca-file" "set nats.caFile"
  "state-dir" "set stateDir"
  "admin-listen" "set admin.address and admin.port"
  "cluster-name" "set clusterName"
  "kubelet-root" "set kubeletRoot"
  "kubelet-cgroup" "set kubeletCgroup"
  "route" "set route"
  "pin-dir" "set bpffs"
  "no-kube" "set kubeApi.enabled"
  "node-name" "each pod is told its own node's"
  "take-over" "it is always on, for updates without a gap" }}
{{- range $key, $_ := .Values.config }}
{{- with get $owned $key }}
{{- fail (printf "config.%s is not taken: %s" $key .) }}
{{- end }}
{{- end }}
{{- $side := include "tokentrail.sideOwnConfig" . | fromYaml }}
{{- range $key, $_ := .Values.auditSide.config }}
{{- if or (hasKey $owned $key) (hasKey $side $key) }}
{{- fail (printf "auditSide.config.%s is not taken: the chart sets it itself, or values of agents do" $key) }}
{{- end }}
{{- end }}
{{- /* Given as an option, an audit log is one more beside a mount that its user adds. */ -}}
{{- $owned = set (omit $owned "audit-log") "config" "set config" }}
{{- range $argument := .Values.extraArgs }}
{{- with get $owned (regexFind "^--[a-z-]+" $argument | trimPrefix "--") }}
{{- fail (printf "%s in extraArgs is not taken: %s" $argument .) }}
{{- end }}
{{- end }}
{{- range .Values.extraEnv }}
{{- if eq (toString .name) "NODE_NAME" }}
{{- fail "NODE_NAME in extraEnv is not taken: each pod is told its own node's" }}
{{- end }}
{{- end }}
{{- end }}

{{- /* What takes posts needs to know its clients, and somebody to tell. */ -}}
{{- define "tokentrail.validateAudit" -}}
{{- with .Values.audit }}
{{- if and (eq .mode "nats") (not $.Values.nats.url) }}
{{- fail "audit.mode is nats, but there is no server: set nats.url" }}
{{- end }}
{{- if and $.Values.auditSide.enabled (eq .mode "webhook") }}
{{- fail "auditSide.enabled and audit.mode webhook would both take the API servers' posts: set audit.mode to nats, or to file" }}
{{- end }}
{{- if or $.Values.auditSide.enabled (eq .mode "webhook") }}
{{- if not .webhook.secretName }}
{{- fail "audit.webhook.secretName is empty: name a Secret with tls.crt and tls.key" }}
{{- end }}
{{- if not (or .webhook.clientCa .webhook.tokens) }}
{{- fail "anybody could post audit events: set audit.webhook.clientCa or audit.webhook.tokens" }}
{{- end }}
{{- if eq (int .webhook.port) (int $.Values.admin.port) }}
{{- fail "audit.webhook.port is admin.port: choose another" }}
{{- end }}
{{- end }}
{{- end }}
{{- if and .Values.auditSide.enabled (not .Values.nats.url) }}
{{- fail "auditSide.enabled, but there is nobody to answer: set nats.url" }}
{{- end }}
{{- if and .Values.test.enabled (not .Values.test.image) }}
{{- fail "test.enabled, but test.image is empty: name an image with sh, sleep and kubectl" }}
{{- end }}
{{- end }}

{{- /* Files need a place, a place files, and there is one login. */ -}}
{{- define "tokentrail.validateNats" -}}
{{- with .Values.nats }}
{{- $files := compact (list .credentialsFile .nkeyFile .passwordFile .certFile .keyFile .caFile) }}
{{- $places := compact (list .secretName .nodeFolder $.Values.auditSide.natsSecretName) }}
{{- if and (not .url) (or $files $places .user) }}
{{- fail "nats.url is empty, but there are files, a Secret, a folder or a user for it: set nats.url" }}
{{- end }}
{{- if and .url (not $.Values.clusterName) }}
{{- fail "clusters may share a NATS server: set clusterName" }}
{{- end }}
{{- if and .secretName .nodeFolder }}
{{- fail "nats.secretName and nats.nodeFolder are two places for the same files: keep one" }}
{{- end }}
{{- if and $files (not (or .secretName .nodeFolder)) }}
{{- fail (printf "nats names files (%s), but not where they are: set nats.secretName or nats.nodeFolder" (join ", " $files)) }}
{{- end }}
{{- if and $places (not $files) }}
{{- fail (printf "none of the files in %s is named: set nats.credentialsFile, or others of nats" (join ", " $places)) }}
{{- end }}
{{- if gt (len (compact (list .credentialsFile .nkeyFile (default .passwordFile .user)))) 1 }}
{{- fail "nats has more than one login: keep one of credentialsFile, nkeyFile, or user with passwordFile" }}
{{- end }}
{{- if ne (empty .user) (empty .passwordFile) }}
{{- fail "nats.user and nats.passwordFile go together: set both" }}
{{- end }}
{{- if ne (empty .certFile) (empty .keyFile) }}
{{- fail "nats.certFile and nats.keyFile go together: set both" }}
{{- end }}
{{- if and .nodeFolder .user }}
{{- fail "nats.user is one for all nodes, and nats.nodeFolder has a login for each: set credentialsFile, nkeyFile, or certFile and keyFile" }}
{{- end }}
{{- if and $.Values.auditSide.enabled .nodeFolder (not $.Values.auditSide.natsSecretName) }}
{{- fail "auditSide does not read nats.nodeFolder: set auditSide.natsSecretName" }}
{{- end }}
{{- end }}
{{- end }}

{{- /* The API server refuses two mounts at one path, a container runtime one inside another's files. */ -}}
{{- define "tokentrail.validateMounts" -}}
{{- $folders := list (list "stateDir" .Values.stateDir) }}
{{- if include "tokentrail.readsLog" . }}
{{- $folders = append $folders (list "the folder of audit.logFile" (dir .Values.audit.logFile)) }}
{{- end }}
{{- if ne .Values.alertLog.file "-" }}
{{- $folders = append $folders (list "the folder of alertLog.file" (dir .Values.alertLog.file)) }}
{{- end }}
{{- range $folders }}
{{- if regexMatch "^/(etc|(etc/tokentrail|proc|sys|dev|run/secrets|run/tokentrail|var/run/secrets)(/.*)?)$" (last .) }}
{{- fail (printf "%s is %s, where the agent's container has files of its own: choose another folder" (first .) (last .)) }}
{{- end }}
{{- end }}
{{- $folders = concat $folders (list (list "the configuration" "/etc/tokentrail") (list "the cgroup tree" "/sys/fs/cgroup")) }}
{{- if eq .Values.audit.mode "webhook" }}
{{- $folders = append $folders (list "the webhook's Secret" "/run/tokentrail/webhook") }}
{{- end }}
{{- if or .Values.nats.secretName .Values.nats.nodeFolder }}
{{- $folders = append $folders (list "the login at NATS" "/run/tokentrail/nats") }}
{{- end }}
{{- if .Values.tracefs }}
{{- $folders = append $folders (list "tracefs" "/sys/kernel/tracing") }}
{{- end }}
{{- if .Values.bpffs }}
{{- $folders = append $folders (list "bpffs" "/sys/fs/bpf") }}
{{- end }}
{{- range .Values.extraVolumeMounts }}
{{- $folders = append $folders (list "a mount of extraVolumeMounts" (clean (toString .mountPath))) }}
{{- end }}
{{- $mounted := dict }}
{{- range $folder := $folders }}
{{- with get $mounted (last $folder) }}
{{- fail (printf "%s and %s would both be mounted at %s: give each a folder of its own" . (first $folder) (last $folder)) }}
{{- end }}
{{- $_ := set $mounted (last $folder) (first $folder) }}
{{- end }}
{{- range .Values.extraVolumes }}
{{- if has .name (list "config" "cgroup" "tracefs" "bpffs" "audit" "alerts" "state" "webhook" "nats") }}
{{- fail (printf "a volume of extraVolumes is named %s, as one of the chart's: choose another name" .name) }}
{{- end }}
{{- end }}
{{- end }}

{{- /* A key twice is no YAML, and a selector must match the pods' labels. */ -}}
{{- define "tokentrail.validateKeys" -}}
{{- $labels := keys (include "tokentrail.labels" . | fromYaml) }}
{{- $annotations := list "checksum/config" }}
{{- if .Values.metrics.annotations }}
{{- $annotations = concat $annotations (list "prometheus.io/scrape" "prometheus.io/port" "prometheus.io/path") }}
{{- end }}
{{- if .Values.security.appArmorProfile }}
{{- $annotations = append $annotations "container.apparmor.security.beta.kubernetes.io/agent" }}
{{- end }}
{{- range list
  (list "podLabels" .Values.podLabels $labels)
  (list "metrics.podMonitor.labels" .Values.metrics.podMonitor.labels $labels)
  (list "podAnnotations" .Values.podAnnotations $annotations) }}
{{- $own := last . }}
{{- $name := first . }}
{{- range $key, $_ := index . 1 }}
{{- if has $key $own }}
{{- fail (printf "%s may not have %s, which the chart sets itself: choose another key" $name $key) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
