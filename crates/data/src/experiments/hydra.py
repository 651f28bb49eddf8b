import json
import sys

request = json.load(sys.stdin)
try:
    import hydra
    from hydra.core.plugins import Plugins
    from omegaconf import OmegaConf
except ImportError as error:
    print(error, file=sys.stderr)
    sys.exit(3)
try:
    sys.path.append(request["plugins"])
    Plugins.instance()
    sys.path.remove(request["plugins"])
    if request["module"]:
        source = hydra.initialize_config_module(request["module"], version_base=None)
    else:
        source = hydra.initialize_config_dir(request["folder"], version_base=None)
    with source:
        config = hydra.compose(config_name=request["name"], overrides=request["overrides"])
    OmegaConf.resolve(config)
    sys.stdout.buffer.write(OmegaConf.to_yaml(config).encode())
except Exception as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(2)
