{{- /* What the schema cannot say: values that are fine alone and break something together. Each
       failure names the value to change. */ -}}
{{- define "tokentrail.validate" -}}
{{- include "tokentrail.validateConfig" . }}
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

{{- /* The API server refuses two mounts at one path, a container runtime one inside another's files. */ -}}
{{- define "tokentrail.validateMounts" -}}
{{- $folders := list (list "stateDir" .Values.stateDir) }}
{{- if .Values.audit.logFile }}
{{- $folders = append $folders (list "the folder of audit.logFile" (dir .Values.audit.logFile)) }}
{{- end }}
{{- if ne .Values.alertLog.file "-" }}
{{- $folders = append $folders (list "the folder of alertLog.file" (dir .Values.alertLog.file)) }}
{{- end }}
{{- range $folders }}
{{- if regexMatch "^/(etc|(etc/tokentrail|proc|sys|dev|run/secrets|var/run/secrets)(/.*)?)$" (last .) }}
{{- fail (printf "%s is %s, where the agent's container has files of its own: choose another folder" (first .) (last .)) }}
{{- end }}
{{- end }}
{{- $folders = concat $folders (list (list "the configuration" "/etc/tokentrail") (list "the cgroup tree" "/sys/fs/cgroup")) }}
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
{{- if has .name (list "config" "cgroup" "tracefs" "bpffs" "audit" "alerts" "state") }}
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
