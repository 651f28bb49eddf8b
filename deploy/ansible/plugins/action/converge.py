# Copyright: the slipway authors
# Apache License 2.0 (see https://www.apache.org/licenses/LICENSE-2.0)
"""The action of the module `converge`: runs `slipway cluster resources` on the controller and `slipway node converge` on the machine."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

FOLDER = "/var/lib/slipway"


class ActionModule(ActionBase):
    """Applies the desired state of cluster.yaml to a machine."""

    TRANSFERS_FILES = True
    _supports_check_mode = True
    _VALID_ARGS = frozenset({"layers", "file", "machine", "program"})

    def run(self, tmp=None, task_vars=None):
        """Uploads slipway if needed, runs its engine on the machine, and converts the events to an Ansible result."""
        result = super().run(tmp, task_vars)
        arguments = self._task.args
        layers = arguments.get("layers") or []
        layers = layers if isinstance(layers, list) else str(layers).split(",")
        program = self._program(arguments.get("program", "slipway"))
        desired_state = self._desired_state(program, arguments, layers, task_vars or {})
        remote_program, folder = self._upload_program(program)
        command = [remote_program, "node", "converge", "--events", "--folder", folder, "-"]
        if self._task.check_mode:
            command.insert(3, "--check")
        ran = self._low_level_execute_command(shlex.join(command), in_data=desired_state)
        if self._task.check_mode:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        return {**result, **self._parse_events(ran)}

    def _program(self, name):
        found = shutil.which(os.path.expanduser(name))
        if not found:
            raise AnsibleActionFail(f"'{name}' was not found on the controller; set `program`")
        return found

    def _desired_state(self, program, arguments, layers, task_vars):
        machine = arguments.get("machine") or task_vars.get("inventory_hostname", "")
        command = [program, "cluster", "resources", machine]
        command += ["--file", arguments["file"]] if arguments.get("file") else []
        command += ["--only", ",".join(layers)] if layers else []
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            raise AnsibleActionFail(f"slipway cluster resources: {done.stderr.decode().strip()}")
        return done.stdout

    def _upload_program(self, program):
        """Uploads the program unless the machine has it. Returns its path and the records folder on the machine.

        The name of the remote file contains a digest, so that each version is uploaded once. A check uses a temporary folder.
        """
        digest = hashlib.sha256()
        with open(program, "rb") as file:
            for chunk in iter(lambda: file.read(1 << 20), b""):
                digest.update(chunk)
        remote = f"{FOLDER}/bin/slipway-{digest.hexdigest()[:16]}"
        size = os.path.getsize(program)
        check = f'[ -x {remote} ] && [ "$(stat -c %s {remote})" = {size} ] && echo there; true'
        present = "there" in self._low_level_execute_command(check)["stdout"]
        if present and not self._task.check_mode:
            return remote, f"{FOLDER}/converge"
        scratch = self._connection._shell.tmpdir or self._make_tmp_path()
        if not present:
            copy = self._connection._shell.join_path(scratch, "slipway")
            self._transfer_file(program, copy)
            self._fixup_perms2((scratch, copy))
            if self._task.check_mode:
                remote = copy
            else:
                self._run_checked(f"mkdir -p {FOLDER}/bin && install -m 755 {shlex.quote(copy)} {remote}")
        return remote, f"{scratch}/converge" if self._task.check_mode else f"{FOLDER}/converge"

    def _run_checked(self, command):
        ran = self._low_level_execute_command(command)
        if ran["rc"]:
            raise AnsibleActionFail(f"{command}: {ran['stderr'] or ran['stdout']}")

    def _parse_events(self, ran):
        """Converts the engine's events to an Ansible result."""
        changes, failures, reboot, ended = {}, [], False, False
        for line in ran["stdout"].splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            kind, resource = event.get("event"), event.get("resource")
            if kind in ("differs", "changing"):
                changes[resource] = [f"{change['sign']} {change['text']}" for change in event["changes"]]
            elif kind == "failed":
                failures.append(f"{resource}: {event['reason']}")
            elif kind == "refused":
                failures.append(event["reason"])
            elif kind == "rebooting":
                reboot = True
            ended = ended or kind in ("done", "rebooting")
        if not ended and not failures:
            failures.append((ran["stderr"] or ran["stdout"] or "slipway printed nothing").strip())
        result = {"changed": bool(changes) or reboot, "resources": changes, "reboot_required": reboot}
        result["diff"] = [{"prepared": "\n".join([resource, *lines, ""])} for resource, lines in changes.items()]
        if failures:
            result.update(failed=True, msg="; ".join(failures))
        return result
