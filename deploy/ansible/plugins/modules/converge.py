# -*- coding: utf-8 -*-
# Copyright: the slipway authors
# Apache License 2.0 (see https://www.apache.org/licenses/LICENSE-2.0)
"""What the module is for; the work is done by the action plugin of the same name."""

from __future__ import annotations

DOCUMENTATION = r"""
module: converge
short_description: Make a machine what cluster.yaml says of it
description:
  - Asks slipway on the controller what the cluster's file wants of the machine, and has slipway's engine on the machine make it so.
  - The program is put onto the machine when it is not there; nothing else is needed there.
  - Reports C(changed) only for what changed, with a diff of each resource. Check mode changes nothing.
  - Becoming root is the play's affair (C(become)).
options:
  layers:
    description: Parts of the machine, as C(slipway cluster apply --only) takes them. All when empty.
    type: list
    elements: str
    default: []
  file:
    description: The cluster's file on the controller. E(SLIPWAY_CLUSTER_FILE) or C(cluster.yaml) by default.
    type: path
  machine:
    description: The machine's name in the file. The inventory's name of the host by default.
    type: str
  program:
    description: slipway on the controller.
    type: path
    default: slipway
author:
  - The slipway authors (@slipway)
"""

EXAMPLES = r"""
- name: The machine below Kubernetes
  slipway.cluster.converge:
    layers: [system, host-tools]
    file: "{{ playbook_dir }}/cluster.yaml"
"""

RETURN = r"""
resources:
  description: What was changed, or would be, by resource, with the changes in words.
  returned: always
  type: dict
  sample: {"system/sysctl": ["~ file /etc/sysctl.d/90-slipway.conf"]}
reboot_required:
  description: Whether the machine must start anew before the rest is done. It goes on by itself after that.
  returned: always
  type: bool
"""
