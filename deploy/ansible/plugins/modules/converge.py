# -*- coding: utf-8 -*-
# Copyright: the slipway authors
# Apache License 2.0 (see https://www.apache.org/licenses/LICENSE-2.0)
"""The documentation of the module. The action plugin of the same name implements it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: converge
short_description: Apply the desired state of cluster.yaml to a machine
description:
  - Runs slipway on the controller to get the desired state of the machine, and slipway's engine on the machine to apply it.
  - Uploads slipway to the machine if it is missing. Nothing else is needed on the machine.
  - Reports C(changed) only if something changed, with a diff of each resource. Check mode changes nothing.
  - The engine must run as root, so set C(become) in the play.
options:
  layers:
    description: Layers to apply, with the names of C(slipway cluster apply --only). All layers by default.
    type: list
    elements: str
    default: []
  file:
    description: Path of the cluster file on the controller. E(SLIPWAY_CLUSTER_FILE) or C(cluster.yaml) by default.
    type: path
  machine:
    description: Name of the machine in the file. The host's name in the inventory by default.
    type: str
  program:
    description: Name or path of slipway on the controller.
    type: path
    default: slipway
author:
  - The slipway authors (@slipway)
"""

EXAMPLES = r"""
- name: Set up the operating system
  slipway.cluster.converge:
    layers: [system, host-tools]
    file: "{{ playbook_dir }}/cluster.yaml"
"""

RETURN = r"""
resources:
  description: The resources that were changed, or would be changed in check mode, with a list of changes for each.
  returned: always
  type: dict
  sample: {"system/sysctl": ["~ file /etc/sysctl.d/90-slipway.conf"]}
reboot_required:
  description: Whether the machine must reboot before the remaining resources are applied. It continues by itself after the reboot.
  returned: always
  type: bool
"""
