"""The middleware stack, outermost first. Each is a pure ASGI class in its own file."""

from app.kernel.addresses import networks
from app.kernel.config import HttpServerSettings
from app.kernel.http.asgi import App
from app.kernel.http.middleware.alerting import Alerting
from app.kernel.http.middleware.error_handler import ErrorHandler
from app.kernel.http.middleware.logger import Logger
from app.kernel.http.middleware.meta_inject import MetaInject
from app.kernel.http.middleware.recovery import Recovery
from app.kernel.http.middleware.timeout import Timeout
from app.kernel.http.middleware.tracing import Tracing


def stack(app: App, settings: HttpServerSettings) -> App:
    """Wrap an application in the seven middlewares."""
    logged = Alerting(Logger(ErrorHandler(app)))
    inner = Timeout(MetaInject(logged, networks(settings.trusted_proxies)), settings.handle_timeout)
    return Recovery(Tracing(inner), debug=settings.debug)
