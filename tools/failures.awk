# Reads what "go test -json" wrote and says in a line each what failed, or was never finished, and with which words: for whoever
# sees only the end of a log. Of a panic it keeps the functions of this module on the stacks.
function field(name) {
  if (!match($0, "\"" name "\":\"[^\"]*\"")) return ""
  return substr($0, RSTART + length(name) + 4, RLENGTH - length(name) - 5)
}
{
  id = field("Package") " " field("Test")
  action = field("Action")
}
action == "run" { state[id] = "unfinished"; order[++n] = id }
action == "pass" || action == "skip" { delete state[id] }
action == "fail" {
  if (!(id in state)) order[++n] = id
  state[id] = "FAIL"
  if (sub("/[^/ ]*$", "", id)) below[id] = 1
  if (field("FailedBuild") != "") said[field("Package") " "] = built[field("FailedBuild")]
}
action ~ /output$/ {
  text = substr($0, index($0, "\"Output\":\"") + 10)
  sub("(\\\\n)?\"}$", "", text)
  gsub(/\\[nt]/, " ", text)
  gsub(/\\"/, "\"", text)
  if (action == "build-output") {
    if (text !~ /^#/ && length(built[field("ImportPath")]) < 900) built[field("ImportPath")] = built[field("ImportPath")] " | " text
    next
  }
  if (id ~ / $/ && text !~ /^FAIL/) last[id] = " | " text # of a package, such as why its TestMain gave up
  deeper = sub("^        +", "", text)
  sub("^ +", "", text)
  if (text ~ /^panic: |^fatal error: |DATA RACE|^\[signal /) { panicked[id] = 1 }
  else if (panicked[id]) { if (text !~ /^(created by )?pizzaflow/) next; sub(/\(0x.*|\(\{.*/, "", text) }
  else if (text ~ /^[a-z0-9_]+\.go:[0-9]+: /) more[id] = 4 # lines that its message may go on for
  else if (!deeper || more[id]-- <= 0) next
  if (length(said[id]) < 900) said[id] = said[id] " | " text
}
END {
  for (i = 1; i <= n; i++) {
    id = order[i]
    split(id, part, " ")
    if (!(id in state) || said[id] == "" && (below[id] || part[2] == "" && shown[part[1]])) continue
    if (said[id] == "") said[id] = last[id]
    shown[part[1]] = 1
    if (said[id] == "" && state[id] == "unfinished") cut = cut " " id
    else lines = lines state[id] " " id substr(said[id], 1, 900) "\n"
  }
  if (cut != "") print "unfinished:" substr(cut, 1, 900)
  printf "%s", lines
}
