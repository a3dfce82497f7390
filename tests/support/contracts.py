"""Import contracts of modules, made from their manifests: a new module is under them without a line more."""

from collections.abc import Iterator

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output
from importlinter.contracts.forbidden import ForbiddenContract
from importlinter.contracts.layers import LayersContract

from app.kernel.module import Module
from app.modules import modules

ABOVE, BELOW = ("cli", "http", "providers"), ("postgres", "domain", "portal", "settings")


def features(module: Module) -> set[str]:
    """Return the files of a module that have its features."""
    return {feature.where.partition(":")[0] for feature in module.features} - {*ABOVE, *BELOW}


def children(graph: ImportGraph, module: Module) -> set[str]:
    """Return the files and folders of a module."""
    return {name.rpartition(".")[2] for name in graph.find_children(module.package)}


class ModuleLayers(LayersContract):
    """Inside each module: command line and HTTP, providers, features, adapters and SQL, domain, portal and settings."""

    layers = fields.ListField(subfield=fields.StringField(), required=False)

    def validate(self) -> None:
        """There is nothing to configure."""

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        found = []
        for module in modules():
            named = features(module)
            adapters = children(graph, module) - {*ABOVE, *BELOW, *named} | {"postgres"}
            layers = [
                "(cli) | (http)",
                "(providers)",
                " : ".join(f"({name})" for name in sorted(named)),
                " : ".join(f"({name})" for name in sorted(adapters)),
                "(domain)",
                "(portal) | (settings)",
            ]
            options = {"layers": [layer for layer in layers if layer], "containers": [module.package]}
            checked = LayersContract(self.name, self.session_options, options).check(graph, verbose)
            found += checked.metadata["invalid_dependencies"]
        return ContractCheck(not found, metadata={"invalid_dependencies": found, "undeclared_modules": set()})


class ModulePortals(Contract):
    """A module imports nothing of another but its portal."""

    type_name = "module_portals"

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        found = sorted(line for module in modules() for line in reached(graph, module))
        return ContractCheck(not found, metadata={"found": found})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for line in check.metadata["found"]:
            output.print_error(line, bold=False)


def reached(graph: ImportGraph, module: Module) -> Iterator[str]:
    """Yield each import of another module's inside."""
    inside = module.package.rpartition(".")[0]
    for importer in {module.package, *graph.find_descendants(module.package)}:
        for imported in graph.find_modules_directly_imported_by(importer):
            other, _, rest = imported.removeprefix(f"{inside}.").partition(".")
            if imported.startswith(f"{inside}.") and other != module.name and rest.split(".")[0] != "portal":
                yield f"{importer} imports {imported}; it may import {inside}.{other}.portal"


class ModulePurity(ForbiddenContract):
    """Some parts of each module load none of some packages. `features` stands for every file that has one."""

    parts = fields.SetField(subfield=fields.StringField())
    source_modules = fields.SetField(subfield=fields.ModuleExpressionField(), required=False)

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        parts: set[str] = set(self.parts)
        options = {name: value for name, value in self.contract_options.items() if name != "parts"}
        options["source_modules"] = [
            f"{module.package}.{name}"
            for module in modules()
            for name in children(graph, module) & (features(module) if parts == {"features"} else parts)
        ]
        return ForbiddenContract(self.name, self.session_options, options).check(graph, verbose)
