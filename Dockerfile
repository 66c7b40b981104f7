# hafvt serve for an export, without torch:
#   docker build -t hafvt:0.2.0 .
#   docker run -p 8000:8000 -v ./exports/hafvt:/model:ro -e HAFVT_API_KEY=... hafvt:0.2.0
FROM python:3.12-slim AS build
WORKDIR /build
RUN python -m venv /opt/hafvt
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY scripts/requirements.py scripts/
RUN python scripts/requirements.py serve redis onnx > requirements.txt \
 && /opt/hafvt/bin/pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt
COPY src src
RUN /opt/hafvt/bin/pip install --no-cache-dir --no-deps .

FROM python:3.12-slim
ENV PATH=/opt/hafvt/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 ORT_DISABLE_TELEMETRY=1
COPY --from=build /opt/hafvt /opt/hafvt
# A number, so that Kubernetes can check that it is not root.
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
STOPSIGNAL SIGTERM
CMD ["hafvt", "serve", "/model", "--host", "0.0.0.0", "--port", "8000"]
