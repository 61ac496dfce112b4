{{- define "tokentrail.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "tokentrail.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains (include "tokentrail.name" .) .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "tokentrail.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "tokentrail.selectorLabels" -}}
app.kubernetes.io/name: {{ include "tokentrail.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "tokentrail.labels" -}}
{{ include "tokentrail.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{- end }}

{{- define "tokentrail.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "tokentrail.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "tokentrail.image" -}}
{{- with .Values.image }}
{{- if .digest }}
{{- printf "%s@%s" .repository .digest }}
{{- else }}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) }}
{{- end }}
{{- end }}
{{- end }}

{{- /* "yes" where agents read an audit log. */ -}}
{{- define "tokentrail.readsLog" -}}
{{- if and (eq .Values.audit.mode "file") .Values.audit.logFile }}yes{{ end }}
{{- end }}

{{- /* Labels of the audit side: no selector of the DaemonSet's pods matches them. */ -}}
{{- define "tokentrail.sideSelectorLabels" -}}
app.kubernetes.io/name: {{ printf "%s-audit" (include "tokentrail.name" . | trunc 57) | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "tokentrail.sideName" -}}
{{- printf "%s-audit" (include "tokentrail.fullname" . | trunc 57 | trimSuffix "-") }}
{{- end }}

{{- /* An address that all of the pod's network reaches. */ -}}
{{- define "tokentrail.listen" -}}
{{- $address := (first .).Values.admin.address }}
{{- printf "%s:%d" (ternary (printf "[%s]" $address) $address (contains ":" $address)) (int (last .)) }}
{{- end }}

{{- /* What is configured to take posts, of agents and of the audit side. */ -}}
{{- define "tokentrail.webhookConfig" -}}
audit-webhook: {{ include "tokentrail.listen" (list . .Values.audit.webhook.port) | quote }}
audit-webhook-cert-file: /run/tokentrail/webhook/tls.crt
audit-webhook-key-file: /run/tokentrail/webhook/tls.key
{{- if .Values.audit.webhook.clientCa }}
audit-webhook-client-ca-file: /run/tokentrail/webhook/ca.crt
{{- end }}
{{- if .Values.audit.webhook.tokens }}
audit-webhook-token-file: /run/tokentrail/webhook/tokens
{{- end }}
{{- end }}

{{- /* The same for the exchange over NATS. */ -}}
{{- define "tokentrail.natsConfig" -}}
{{- with .Values.nats }}
{{- if .url }}
nats: {{ .url | quote }}
{{- with .user }}
nats-user: {{ . | quote }}
{{- end }}
{{- range $key, $file := dict "credentials" .credentialsFile "nkey" .nkeyFile "password" .passwordFile "cert" .certFile "key" .keyFile "ca" .caFile }}
{{- with $file }}
nats-{{ $key }}-file: {{ printf "/run/tokentrail/nats/%s" . | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- /* The audit side's configuration file. */ -}}
{{- define "tokentrail.sideConfig" -}}
{{- toYaml (merge (include "tokentrail.sideOwnConfig" . | fromYaml) .Values.auditSide.config) }}
{{- end }}

{{- /* Where its alerts are: in a file, which is the queue to NATS; in the pod's log where they are not published. */ -}}
{{- define "tokentrail.sideAlertLog" -}}
{{- ternary "-" "/var/lib/tokentrail/alerts.ndjson" (eq (get .Values.auditSide.config "nats-publish-alerts" | toString) "false") }}
{{- end }}

{{- define "tokentrail.sideOwnConfig" -}}
{{- $config := dict "no-sensor" true "no-kube" (not .Values.kubeApi.enabled) "alert-log" (include "tokentrail.sideAlertLog" .) "state-dir" "/var/lib/tokentrail" "rules-file" "/etc/tokentrail/rules.yaml" "cluster-name" .Values.clusterName }}
{{- /* An API server posts to one of several: what comes back to it says nothing of another's. */ -}}
{{- $_ := set $config "audit-canary-seconds" 0 }}
{{- /* Half of its volume at most: whoever writes more there is evicted. */ -}}
{{- $_ := set $config "alert-log-max-mib" 32 }}
{{- $_ := set $config "alert-log-keep" 3 }}
{{- $_ := set $config "admin-listen" (include "tokentrail.listen" (list . .Values.admin.port)) }}
{{- toYaml (merge $config (include "tokentrail.webhookConfig" . | fromYaml) (include "tokentrail.natsConfig" . | fromYaml)) }}
{{- end }}

{{- /* The agent's configuration file: what the values say, and what `config` adds. */ -}}
{{- define "tokentrail.config" -}}
{{- $config := dict "alert-log" .Values.alertLog.file "state-dir" .Values.stateDir "kubelet-root" .Values.kubeletRoot "route" .Values.route "rules-file" "/etc/tokentrail/rules.yaml" }}
{{- $_ := set $config "alert-log-max-mib" (int .Values.alertLog.maxMiB) }}
{{- $_ := set $config "alert-log-keep" (int .Values.alertLog.keep) }}
{{- $_ := set $config "admin-listen" (include "tokentrail.listen" (list . .Values.admin.port)) }}
{{- /* During an update two agents of one node meet; the new one waits for its turn. */ -}}
{{- $_ := set $config "take-over" true }}
{{- if .Values.bpffs }}
{{- $_ := set $config "pin-dir" "/sys/fs/bpf/tokentrail" }}
{{- end }}
{{- if include "tokentrail.readsLog" . }}
{{- $_ := set $config "audit-log" (list .Values.audit.logFile) }}
{{- $_ := set $config "audit-log-optional" .Values.audit.optional }}
{{- end }}
{{- if eq .Values.audit.mode "webhook" }}
{{- $config = merge $config (include "tokentrail.webhookConfig" . | fromYaml) }}
{{- end }}
{{- $config = merge $config (include "tokentrail.natsConfig" . | fromYaml) }}
{{- with .Values.clusterName }}
{{- $_ := set $config "cluster-name" . }}
{{- end }}
{{- with .Values.kubeletCgroup }}
{{- $_ := set $config "kubelet-cgroup" . }}
{{- end }}
{{- with .Values.alertLog.podLabels }}
{{- $_ := set $config "pod-labels" . }}
{{- end }}
{{- if not .Values.kubeApi.enabled }}
{{- $_ := set $config "no-kube" true }}
{{- end }}
{{- toYaml (merge $config .Values.config) }}
{{- end }}
