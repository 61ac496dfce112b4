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

{{- /* The agent's configuration file: what the values say, and what `config` adds. */ -}}
{{- define "tokentrail.config" -}}
{{- $config := dict "alert-log" .Values.alertLog.file "state-dir" .Values.stateDir "kubelet-root" .Values.kubeletRoot "route" .Values.route "rules-file" "/etc/tokentrail/rules.yaml" }}
{{- $_ := set $config "alert-log-max-mib" (int .Values.alertLog.maxMiB) }}
{{- $_ := set $config "alert-log-keep" (int .Values.alertLog.keep) }}
{{- $address := .Values.admin.address }}
{{- $_ := set $config "admin-listen" (printf "%s:%d" (ternary (printf "[%s]" $address) $address (contains ":" $address)) (int .Values.admin.port)) }}
{{- /* During an update two agents of one node meet; the new one waits for its turn. */ -}}
{{- $_ := set $config "take-over" true }}
{{- if .Values.bpffs }}
{{- $_ := set $config "pin-dir" "/sys/fs/bpf/tokentrail" }}
{{- end }}
{{- if .Values.audit.logFile }}
{{- $_ := set $config "audit-log" (list .Values.audit.logFile) }}
{{- $_ := set $config "audit-log-optional" .Values.audit.optional }}
{{- end }}
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
